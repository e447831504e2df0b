"""What a request says is said once: its body and its fingerprint come from `input`."""

from pathlib import PurePosixPath
from typing import Any

import attrs
import pytest
from emulated import emulated

from flux2_async._protocol.codec import encode_request
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage, Request, TextToImage, UploadedFile
from flux2_async.session.keys import fingerprint


@attrs.frozen
class Seeded(TextToImage):
    """A request with one more field."""

    seed: int = attrs.field(default=0, kw_only=True)

    @property
    def input(self) -> dict[str, Any]:
        return {**super().input, "seed": self.seed}


ONE = Seeded("a lighthouse", seed=1)
OTHER = Seeded("a lighthouse", seed=2)

WORDS = TextToImage("a lighthouse — маяк")
ALL_FIELDS = TextToImage(
    "a lighthouse",
    aspect_ratio="16:9",
    resolution="2K",
    tier="pro",
    extra_input={"seed": 7, "b": {"y": [1, None, "é"], "x": 0.5}},
)
PICTURES = ImageToImage(
    "blend them",
    images=[
        "https://host/a.png",
        PurePosixPath("b/c.png"),
        UploadedFile("https://host/u.png", "u.png", 3, "image/png"),
    ],
    aspect_ratio="auto",
)


@pytest.mark.parametrize(
    ("request_", "known"),
    [
        (WORDS, "957e974b495e27117e742fdebb8f06cf6374ef32f98928e599cc312da14adc90"),
        (ALL_FIELDS, "7815848a3af9e3f82b824956bd3d5ec28daa36d53843350a6298eab7b5376f5d"),
        (PICTURES, "a3ff9d4bf2ca9f4b4045e8e3a5cb6fc06f62a90186cf4ce21c9140288bbbb25a"),
        (
            ImageToImage("blend them", images=[b"content"]),
            "14529fbac5d6c52e6548cf292c23c345d4c8d74e1ca343c055ddfceea0b40cd0",
        ),
    ],
)
async def test_fingerprints_stay_what_they_were(request_: Request, known: str) -> None:
    """What a process of an earlier version bound a key to is the same request to this one."""
    assert await fingerprint(request_) == known


async def test_one_more_field_makes_it_another_request() -> None:
    """What is in the body is in the fingerprint, as a field of a subclass as well as in `extra_input`."""
    plain = TextToImage("a lighthouse", extra_input={"seed": 1})
    bodies = {encode_request(each) for each in (ONE, OTHER, TextToImage("a lighthouse"))}
    assert len(bodies) == 3
    assert encode_request(ONE) == encode_request(plain)
    assert await fingerprint(ONE) != await fingerprint(OTHER)
    assert await fingerprint(ONE) == await fingerprint(plain)


async def test_a_field_of_extra_input_may_have_any_name() -> None:
    """The names under which the library keeps the parts of a request mean nothing in `extra_input`."""
    names = ("model", "images", "tier", "extra_input")
    requests = [TextToImage("a lighthouse", extra_input={name: "x"}) for name in names]
    assert len({await fingerprint(each) for each in requests}) == len(names)
    assert b'"images":"x"' in encode_request(requests[1])


async def test_a_key_stands_for_the_further_field_too() -> None:
    """`submit(key=)` refuses another request under the same key and joins the same one."""
    async with emulated() as (flux, emulator):
        task = await flux.submit(ONE, key="order 1")
        with pytest.raises(InvalidRequestError, match="another request"):
            await flux.submit(OTHER, key="order 1")
        assert await flux.submit(Seeded("a lighthouse", seed=1), key="order 1") is task
    (call,) = emulator.ledger.requests
    assert call.body is not None
    assert call.body["input"]["seed"] == 1
