"""Requests and settings are checked when they are made, and say nothing private in their reprs."""

import math
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux2_async.errors import ConfigurationError, InvalidRequestError
from flux2_async.models import (
    ImageResult,
    ImageSource,
    ImageToImage,
    Polling,
    RateLimit,
    TaskRecord,
    TaskState,
    TextToImage,
    Timeouts,
    UploadedFile,
)
from flux2_async.models.requests import RATIOS

UPLOADED = UploadedFile("https://f.example/a.png", "a.png", 7, "image/png")
CHOICES = "'1:1', '4:3', '3:4', '16:9', '9:16', '3:2', '2:3'"


class Circular(dict[str, Any]):
    """A mapping that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self["again"] = self


def deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "ab"}, "prompt: 2 characters given, allowed are 3 to 5000"),
        ({"prompt": "   a   "}, "prompt: 1 character besides blanks given, allowed are 3 to 5000"),
        ({"prompt": "x" * 5001}, "prompt: 5001 characters given, allowed are 3 to 5000"),
        ({"prompt": None}, "prompt: NoneType given, it must be text of 3 to 5000 characters"),
        (
            {"prompt": "caf\udce9"},
            "prompt: half a surrogate pair given at character 4, all text must be valid Unicode",
        ),
        ({"prompt": b"bytes"}, "prompt: bytes given, it must be text of 3 to 5000 characters"),
        ({"aspect_ratio": "5:4"}, f"aspect_ratio: '5:4' given, allowed are {CHOICES}, 'auto'"),
        ({"resolution": "4K"}, "resolution: '4K' given, allowed are '1K', '2K'"),
        ({"resolution": 1}, "resolution: 1 given, allowed are '1K', '2K'"),
        ({"tier": "max"}, "tier: 'max' given, allowed are 'flex', 'pro'"),
        ({"images": []}, "images: 0 given, allowed are 1 to 8"),
        ({"images": ["a.png"] * 9}, "images: 9 given, allowed are 1 to 8"),
        ({"images": "a.png"}, "images: str given, it must be a list of 1 to 8 pictures; put a single one into a list"),
        ({"images": b"\x89PNG"}, "images: bytes given, it must be a list of 1 to 8 pictures"),
        ({"images": Path("a.png")}, "images: PosixPath given, it must be a list of 1 to 8 pictures"),
        ({"images": UPLOADED}, "images: UploadedFile given, it must be a list of 1 to 8 pictures"),
        ({"images": 5}, "images: int given, it must be a list of 1 to 8 pictures"),
        ({"images": ["a.png", 5]}, "images[1]: int given, allowed are an http(s) address, a path, bytes or an"),
        ({"images": [b""]}, "images[0]: 0 bytes given, it must be the content of a JPEG, PNG or WebP file"),
        ({"images": ["https://"]}, "images[0]: not a complete address, it must look like https://host/picture.jpg"),
        ({"images": ["https://[x/a.png"]}, "images[0]: not a complete address"),
        ({"images": ["https://f.example:port/a.png"]}, "images[0]: not a complete address"),
        ({"images": ["https://f.example:99999/a.png"]}, "images[0]: not a complete address"),
        ({"images": ["https://f.example/a b.png"]}, "images[0]: not a complete address"),
        ({"images": [" "]}, "images[0]: ' ' given, it must be an http(s) address or the path of a file"),
        ({"images": ["a\0.png"]}, "images[0]: 'a\\x00.png' given, it must be an http(s) address or the path"),
        ({"images": ["data:image/png;base64,aGk="]}, "images[0]: a data: address given; pass the decoded bytes"),
        ({"images": ["ftp://f.example/a.png"]}, "images[0]: an address with ftp:// given, allowed are http:// and"),
        ({"images": ["://f.example/a.png"]}, "images[0]: an address with :// given, allowed are http:// and https://"),
        ({"extra_input": {"prompt": "x"}}, "extra_input: 'prompt' given, use the field of the request instead"),
        ({"extra_input": {"input_urls": []}}, "extra_input: 'input_urls' given, use the field of the request"),
        ({"extra_input": [1]}, "extra_input: list given, it must be a mapping from field names to JSON values"),
        ({"extra_input": {1: 2}}, "extra_input: dict given, it must be a mapping from field names to JSON values"),
        ({"extra_input": {"a": {1}}}, "extra_input: cannot be written as JSON"),
        ({"extra_input": {"a": math.nan}}, "extra_input: cannot be written as JSON"),
        ({"extra_input": Circular()}, "extra_input: cannot be written as JSON"),
        ({"extra_input": deep()}, "extra_input: cannot be written as JSON"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_bad_requests(fields: dict[str, Any], text: str) -> None:
    """Each bad field is refused when the request is made; the text names it, what was given and what is allowed."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageToImage(**{"prompt": "swap the can", "images": ["a.png"], **fields})
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, ValueError)


def test_auto_needs_a_picture() -> None:
    """`auto` is the ratio of the first picture, so it is for image-to-image only."""
    with pytest.raises(
        InvalidRequestError, match="aspect_ratio: 'auto' takes the ratio of the first picture"
    ) as caught:
        TextToImage("a red kettle", aspect_ratio="auto")  # type: ignore[arg-type]  # told by checkers too
    assert str(caught.value).endswith(f"allowed are {CHOICES}")
    assert ImageToImage("a red kettle", images=["a.png"], aspect_ratio="auto").aspect_ratio == "auto"


def test_auto_is_not_offered_without_a_picture() -> None:
    """A wrong ratio of a request without pictures is not answered by advice that fails as well."""
    with pytest.raises(InvalidRequestError) as caught:
        TextToImage("a red kettle", aspect_ratio="5:4")  # type: ignore[arg-type]  # likewise
    assert str(caught.value) == f"aspect_ratio: '5:4' given, allowed are {CHOICES}"


def test_a_refusal_does_not_repeat_the_prompt() -> None:
    """The text of a refused prompt holds its length, not its words."""
    with pytest.raises(InvalidRequestError) as caught:
        TextToImage("sunset " * 1000)
    assert "sunset" not in str(caught.value)


@given(
    st.text(min_size=3, max_size=5000).filter(lambda text: len(text.strip()) >= 3),
    st.sampled_from(RATIOS),
    st.sampled_from(["1K", "2K"]),
    st.sampled_from(["flex", "pro"]),
)
def test_good_requests(prompt: str, aspect_ratio: Any, resolution: Any, tier: Any) -> None:
    """What is inside the bounds is taken as it is."""
    request = TextToImage(prompt, aspect_ratio=aspect_ratio, resolution=resolution, tier=tier)
    assert request.prompt == prompt
    assert request.model == f"flux-2/{tier}-text-to-image"
    assert pickle.loads(pickle.dumps(request)) == request


def test_requests_with_pictures() -> None:
    """Every kind of picture is taken, in order, from any iterable."""
    images: list[ImageSource] = ["a.png", "HTTPS://f.example/a.png", Path("b.webp"), b"\x89PNG", UPLOADED]
    request = ImageToImage("swap the can", images=iter(images), tier="pro")
    assert request.images == tuple(images)
    assert request.model == "flux-2/pro-image-to-image"
    assert hash(request) == hash(ImageToImage("swap the can", images=images, tier="pro", extra_input={"a": []}))


def test_defaults_are_the_documented_ones() -> None:
    """A square picture of 1K from the flex model."""
    request = TextToImage("a red kettle")
    assert (request.aspect_ratio, request.resolution, request.tier, request.extra_input) == ("1:1", "1K", "flex", {})


def test_extra_input_is_not_shared() -> None:
    """A change to the caller's mapping does not reach the request."""
    mine = {"nsfw_checker": False}
    request = TextToImage("a red kettle", extra_input=mine)
    mine["nsfw_checker"] = True
    assert request.extra_input == {"nsfw_checker": False}


def test_data_is_frozen() -> None:
    """Nothing can be changed after it was made."""
    for value, name in ((TextToImage("a red kettle"), "prompt"), (RateLimit(20, 10), "limit"), (UPLOADED, "url")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, "other")


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (RateLimit, {"limit": 0, "period": 10}, "RateLimit.limit: 0 given, it must be a whole number of 1 or more"),
        (RateLimit, {"limit": True, "period": 10}, "RateLimit.limit: True given"),
        (RateLimit, {"limit": 2.0, "period": 10}, "RateLimit.limit: 2.0 given"),
        (RateLimit, {"limit": 20, "period": 0}, "RateLimit.period: 0 given, it must be a number above 0"),
        (RateLimit, {"limit": 20, "period": math.inf}, "RateLimit.period: inf given"),
        (RateLimit, {"limit": 20, "period": "10"}, "RateLimit.period: '10' given"),
        (Polling, {"price": 0}, "Polling.price: 0 given, it must be a number above 0"),
        (Polling, {"remember": "yes"}, "Polling.remember: 'yes' given, it must be True or False"),
        (Polling, {"wait_max": 0}, "Polling.wait_max: 0 given, it must be a number above 0"),
        (Polling, {"interval": -1}, "Polling.interval: -1 given, it must be a number of 0 or more, or None"),
        (Polling, {"interval": math.nan}, "Polling.interval: nan given"),
        (Polling, {"give_up_after": 0}, "Polling.give_up_after: 0 given, it must be a number above 0, or None"),
        (Polling, {"max_concurrency": 0}, "Polling.max_concurrency: 0 given, it must be a whole number of 1 or more"),
        (Polling, {"wait_min": 40}, "Polling: wait_min is 40 and wait_max 30.0; give both, the smaller first"),
        (Polling, {"wait_max": 0.1}, "Polling: wait_min is 0.25 and wait_max 0.1; give both, the smaller first"),
        (Timeouts, {"submit": -1}, "Timeouts.submit: -1 given, it must be a number above 0"),
        (Timeouts, {"connect": None}, "Timeouts.connect: None given, it must be a number above 0"),
    ],
)
def test_bad_settings(kind: type, fields: dict[str, Any], text: str) -> None:
    """A setting out of bounds is a `ConfigurationError` that names it."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**fields)
    assert str(caught.value).startswith(text)


def test_good_settings() -> None:
    """The bounds themselves and None where it means something are taken."""
    assert Polling(interval=0, give_up_after=None).interval == 0
    assert Polling(wait_min=30, wait_max=30).wait_min == 30
    assert attrs.astuple(Timeouts()) == (10.0, 60.0, 30.0, 120.0, 300.0)
    assert attrs.astuple(RateLimit(1, 0.1)) == (1, 0.1)


def test_states() -> None:
    """Only success and failure are final."""
    assert [state for state in TaskState if state.final] == [TaskState.SUCCESS, TaskState.FAIL]


def test_duration() -> None:
    """Seconds between the stamps, or None until both are there."""
    created = datetime(2026, 1, 1, tzinfo=UTC)
    record = TaskRecord(task_id="t-1", state=TaskState.SUCCESS, state_text="success", create_time=created)
    assert record.duration is None
    assert attrs.evolve(record, complete_time=created + timedelta(seconds=8.98)).duration == 8.98


def test_reprs_hold_nothing_private() -> None:
    """Prompts, pictures, addresses, echoes and the service's words are in no repr."""
    secret = "sunset-over-the-sea"
    address = f"https://f.example/{secret}.png"
    record = TaskRecord(
        task_id="t-1",
        state=TaskState.FAIL,
        state_text="fail",
        result_urls=(address,),
        fail_message=secret,
        param={"input": {"prompt": secret}},
        extra={"more": secret},
    )
    values = [
        TextToImage(secret, extra_input={"more": secret}),
        ImageToImage(secret, images=[address, secret.encode()]),
        record,
        ImageResult(task_id="t-1", urls=(address,), record=record),
    ]
    for value in values:
        assert secret not in repr(value)
        assert secret not in str(value)
    assert "<19 characters>" in repr(values[0])
    assert "urls=<1 address, not shown here; print them>" in repr(values[3])
