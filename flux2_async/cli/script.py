"""What the demo asks for, and what its emulated service does about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from flux2_async.emulator import Fault, Limit, Plan, Script
from flux2_async.models import AspectRatio, ImageToImage, Request, Resolution, TextToImage, Tier, UploadedFile

PHOTOS: Final = {path.stem: path for path in sorted((Path(__file__).parent / "photos").glob("*.[jp][pn]g"))}
"""The shipped photographs by name; see photos/SOURCES.md."""

QUICK: Final = 0.8
# Seconds of the emulated service per second of a wish.
PACE = 1.0

CAT, COFFEE, OFFICER, ROCKET = "chelsea", "coffee", "grace_hopper", "rocket"


@attrs.frozen
class Wish:
    """One request of the demo, by names of shipped photographs; `duration` is the service's, in seconds."""

    prompt: str
    photos: tuple[str, ...] = ()
    aspect_ratio: AspectRatio = "1:1"
    resolution: Resolution = "1K"
    tier: Tier = "flex"
    duration: float = 3.0
    moderated: bool = False

    def request(self, uploaded: Mapping[str, UploadedFile]) -> Request:
        """Give the request, with the photographs at the service by name."""
        shape: dict[str, Any] = {"aspect_ratio": self.aspect_ratio, "resolution": self.resolution, "tier": self.tier}
        if not self.photos:
            return TextToImage(self.prompt, **shape)
        return ImageToImage(self.prompt, images=[uploaded[name] for name in self.photos], **shape)

    @property
    def facts(self) -> str:
        """How it is asked for, in short."""
        words = "edit" if self.photos else "text"
        return f"{words} {self.tier:<4} {self.aspect_ratio:<4} {self.resolution}"

    @property
    def long_facts(self) -> str:
        """How it is asked for, in the API's words."""
        model = "image-to-image" if self.photos else "text-to-image"
        return f"{model} · {self.tier} · {self.aspect_ratio} · {self.resolution}"


WISHES: Final = (
    Wish("Turn the cat into a watercolour painting", (CAT,), "auto", duration=2.4),
    Wish("Put the cat from image 1 behind the cup from image 2", (CAT, COFFEE), "16:9", tier="pro", duration=4.1),
    Wish("A launch poster: the rocket from image 1 rising out of the cup", (ROCKET, COFFEE), "2:3", duration=6.3),
    Wish("A magazine cover with all four pictures", (OFFICER, ROCKET, CAT, COFFEE), "3:4", tier="pro", duration=7.2),
    Wish("A lighthouse at dawn, mist over the sea", (), "4:3", duration=1.8),
    Wish("A narrow street in the rain, neon signs, film grain", (), "9:16", tier="pro", duration=3.2),
    Wish("The portrait as a pencil drawing on rough paper", (OFFICER,), "auto", tier="pro", duration=5.0),
    Wish("Mountains above a sea of clouds, long exposure", (), "16:9", "2K", "pro", duration=4.6),
    Wish("Something that the content policy forbids", (OFFICER,), "1:1", duration=2.9, moderated=True),
    Wish("The rocket launch seen from the cat's window", (CAT, ROCKET), "3:2", duration=5.6),
    Wish("A still life: the cup on old books, window light", (COFFEE,), "1:1", "2K", duration=6.8),
    Wish("The officer with the cat, the rocket behind", (OFFICER, CAT, ROCKET), "4:3", tier="pro", duration=8.0),
    Wish("Sand dunes at noon, a single line of footprints", (), "3:2", duration=3.7),
    Wish("A paper boat on a dark lake, reflections of lanterns", (), "2:3", duration=7.6),
    Wish("Swap the coffee for hot chocolate with cream", (COFFEE,), "auto", tier="pro", duration=2.1),
    Wish("A night sky over a small harbour, stars as trails", (), "1:1", tier="pro", duration=1.2),
)


def demo_script(limit: Limit) -> Script:
    """Give the script of the demo's service: it moderates one request, and refuses the last one by 429 at first."""
    by_prompt = {wish.prompt: wish for wish in WISHES}

    def plan(index: int, body: Mapping[str, Any]) -> Plan:
        wish = by_prompt[body["input"]["prompt"]]
        # The one that had to wait keeps everybody else waiting.
        duration = QUICK if index == len(WISHES) - 1 else wish.duration
        return Plan(duration=duration * PACE, outcome="moderated" if wish.moderated else "success")

    # The last, because the session takes a 429 at its word: it starts no more than were accepted until then.
    refusal = Fault("createTask", "refuse", task=len(WISHES) - 1, code=429, retry_after=1)
    return Script(plans=plan, limit=limit, faults=[refusal])
