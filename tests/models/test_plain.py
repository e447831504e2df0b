"""What equals an allowed value is kept as that value: enums of text and numbers, and other subclasses."""

import enum
from pathlib import Path
from typing import Any

import attrs
import pytest
from batches import batch_in, collect
from emulated import REQUEST, emulated, error_of, session_for

from flux2_async.batch import Job
from flux2_async.batch.jobs import digest_of
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import ConfigurationError, InvalidRequestError
from flux2_async.models import Callbacks, ImageToImage, Polling, RateLimit, TextToImage, Timeouts, UploadedFile
from flux2_async.models.plain import plain
from flux2_async.models.requests import input_of
from flux2_async.session.keys import fingerprint
from flux2_async.webhooks import signed_url, verify_url


class Word(str, enum.Enum):  # noqa: UP042  one whose text is not its value
    PRO = "pro"
    WIDE = "16:9"
    LARGE = "2K"
    PROMPT = "a red kettle"
    URL = "https://files.example/a.png"
    KEY = "order-7"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        return "something else"

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return True


class Content(bytes):
    def __bytes__(self) -> bytes:
        return b"something else"


class Number(enum.IntEnum):
    FIVE = 5


class Seconds(float):
    def __repr__(self) -> str:
        return "soon"


@attrs.frozen
class Labelled(ImageToImage):
    label: str = attrs.field(default="", kw_only=True)


def made(text: Any, kind: type[ImageToImage] = ImageToImage) -> ImageToImage:
    return kind(
        text("a red kettle"),
        images=[text("https://files.example/a.png"), UploadedFile(text("https://files.example/b.png"), "b", 1, "x")],
        aspect_ratio=text("16:9"),
        resolution=text("2K"),
        tier=text("pro"),
        extra_input={text("style"): text("pro")},
    )


@pytest.mark.parametrize("kind", [ImageToImage, Labelled])
@pytest.mark.parametrize(
    "text", [lambda value: Word(value) if value in list(Word) else value, Text], ids=["enum", "str"]
)
async def test_a_request(text: Any, kind: type[ImageToImage]) -> None:
    """A request of subclasses of text is the plain one: as it is sent, for a key, and in the journal of a batch."""
    ours, usual = made(text, kind), made(str, kind)
    urls = [image.url if isinstance(image, UploadedFile) else image for image in ours.images]

    assert ours.model == "flux-2/pro-image-to-image"
    assert (ours, repr(ours)) == (usual, repr(usual))
    assert {type(each) for each in (ours.prompt, ours.aspect_ratio, ours.resolution, ours.tier, *urls)} == {str}
    assert input_of(ours, [str(url) for url in urls]) == input_of(usual, [str(url) for url in urls])
    assert await fingerprint(ours) == await fingerprint(usual)
    assert digest_of(ours) == digest_of(usual)


def test_what_merely_says_that_it_equals() -> None:
    """Equality that lies is not believed."""

    class Liar:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]  # as objects with `__eq__` alone have it

    liar: Any = Liar()
    with pytest.raises(InvalidRequestError, match="tier"):
        TextToImage("a red kettle", tier=liar)
    with pytest.raises(InvalidRequestError, match="aspect_ratio"):
        TextToImage("a red kettle", aspect_ratio=liar)
    expensive: Any = Text("expensive")
    with pytest.raises(InvalidRequestError, match="tier: 'expensive' given"):
        TextToImage("a red kettle", tier=expensive)


def test_settings() -> None:
    """Numbers of settings are plain ones; True is none, whatever class it has."""
    settings = RateLimit(Number.FIVE, Seconds(2.5)), Polling(interval=Number.FIVE), Timeouts(connect=Seconds(1.5))
    assert settings == (RateLimit(5, 2.5), Polling(interval=5), Timeouts(connect=1.5))
    assert "soon" not in repr(settings)
    assert "FIVE" not in repr(settings)
    assert type(settings[0].limit) is int
    assert Callbacks(Word.URL, secret=Word.KEY).url == f"{Word.URL.value}"
    with pytest.raises(ConfigurationError):
        RateLimit(True, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Word.PRO, "pro"),
        (Text("pro"), "pro"),
        (Content(b"abc"), b"abc"),
        (Number.FIVE, 5),
        (Seconds(1.5), 1.5),
        (True, True),
        (None, None),
    ],
)
def test_plain(value: object, expected: object) -> None:
    """Text, bytes and numbers lose their subclass, whatever it overrides; anything else stays."""
    result = plain(value)
    assert type(result) is type(expected)
    assert result == expected


def test_addresses_of_callbacks() -> None:
    """A callback's address names the ref itself, which is found again."""
    address = signed_url(Word.URL, Word.KEY, Word.PRO)
    assert address.startswith("https://files.example/a.png?ref=order-7&sig=")
    assert verify_url(address.partition("?")[2], "pro") == "order-7"


async def test_keys_and_refs() -> None:
    """A key and a ref from an enum are those that they equal: one piece of work, one task."""
    refs: list[str] = []

    async def on_send(ref: str) -> None:
        refs.append(ref)

    async with emulated() as (flux, emulator):
        task = await flux.submit(REQUEST, key=Word.KEY, ref=Word.PRO, on_send=on_send)
        assert await flux.submit(REQUEST, key="order-7") is task
        assert await flux.submit(REQUEST, key=Text("order-7")) is task
        assert isinstance(await error_of(flux.submit(REQUEST, key=Word.PRO, ref=Word.WIDE)), InvalidRequestError)

        assert [type(ref) for ref in refs] == [str]
        assert refs == ["pro"]
        assert len(emulator.ledger.accepted) == 1
        assert flux.attach(Text(task.id)) is task


async def test_a_batch_with_an_enum_pays_once(tmp_path: Path) -> None:
    """The same batch with `Tier.PRO` and with `"pro"` is the same batch."""
    script = Script(plans=Plan(duration=1.0), render=False)
    async with Emulator(script) as emulator:
        tiers: tuple[Any, ...] = (Word.PRO, "pro")
        for tier in tiers:
            async with session_for(emulator) as flux:
                requests = [TextToImage(f"number {number}", tier=tier) for number in range(3)]
                await collect(batch_in(tmp_path, flux, [*requests, Job(TextToImage("a job", tier=tier), id=Text("j"))]))

        assert len(emulator.ledger.accepted) == 4
        assert {call.body["model"] for call in emulator.ledger.requests if call.body} == {"flux-2/pro-text-to-image"}
