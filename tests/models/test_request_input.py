"""What a request says is said once: its body, its fingerprint and what a batch keeps of it come from `input`."""

from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pytest
from batches import run
from emulated import emulated

from flux2_async.batch.jobs import Job, digest_of
from flux2_async.errors import InvalidRequestError
from flux2_async.models import ImageToImage, Request, TextToImage, UploadedFile
from flux2_async.models.requests import input_of
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


@pytest.mark.parametrize(
    ("request_", "known"),
    [
        (WORDS, "fc0dcc6af80f73d083c169218867713833f8164c0e5c44188b23fb2c171440a3"),
        (ALL_FIELDS, "36f3277a8482fa783f0fd679e8bbe8a9217f1f779753af809e486bede24451ed"),
        (PICTURES, "7d42c1ef863237fac867e5f62fd0b7a41131d43e359bbcd16d0b7955a3e77ab5"),
    ],
)
def test_digests_stay_what_they_were(request_: Request, known: str) -> None:
    """What stands in the journal of an earlier version is found again."""
    assert digest_of(request_).hex() == known


async def test_one_more_field_makes_it_another_request() -> None:
    """What is in the body is in the fingerprint, as a field of a subclass as well as in `extra_input`."""
    plain = TextToImage("a lighthouse", extra_input={"seed": 1})
    bodies = [input_of(each, ()) for each in (ONE, OTHER, TextToImage("a lighthouse"))]
    assert all(one != other for one, other in combinations(bodies, 2))
    assert input_of(ONE, ()) == input_of(plain, ())
    assert await fingerprint(ONE) != await fingerprint(OTHER)
    assert await fingerprint(ONE) == await fingerprint(plain)


async def test_a_field_of_extra_input_may_have_any_name() -> None:
    """The names under which the library keeps the parts of a request mean nothing in `extra_input`."""
    names = ("model", "images", "tier", "extra_input")
    requests = [TextToImage("a lighthouse", extra_input={name: "x"}) for name in names]
    assert len({await fingerprint(each) for each in requests}) == len(names)
    assert input_of(requests[1], ())["images"] == "x"


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


async def test_a_batch_keeps_the_further_field(tmp_path: Path) -> None:
    """Two requests that differ in it are two, and the field is sent, also by the run after."""
    async with emulated() as (flux, emulator):
        outcomes = await run(tmp_path, flux, [ONE, OTHER], limit=1)
        outcomes += await run(tmp_path, flux, [ONE, OTHER])
    assert len({outcome.id for outcome in outcomes}) == 2
    assert [call.body["input"]["seed"] for call in emulator.ledger.requests if call.body] == [1, 2]


def test_a_batch_refuses_a_model_it_does_not_keep() -> None:
    """A request that names its own model would be sent with another one."""

    class Other(TextToImage):
        @property
        def model(self) -> str:
            return "flux-3/flex"

    with pytest.raises(InvalidRequestError, match="Other has a model of its own"):
        Job(Other("a lighthouse"))
