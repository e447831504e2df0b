"""Other models of the jobs API: the same session, keys, batches and downloads, with an input that is the caller's."""

import io
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest
from batches import run
from emulated import REQUEST, emulated, error_of
from file_host import picture, serving
from hypothesis import given
from hypothesis import strategies as st

from flux2_async import Flux2Session, JobRequest, Request, TextToImage, UploadedFile
from flux2_async._protocol.codec import encode_request
from flux2_async.batch import Job, read_jobs
from flux2_async.batch.jobs import BadLine, digest_of
from flux2_async.emulator import Emulator, Plan, Script
from flux2_async.errors import InvalidRequestError, RequestRejectedError
from flux2_async.models.requests import facts_of, images_of, names_of_images, request_of
from flux2_async.session.keys import fingerprint

EDIT = "google/nano-banana-edit"
MODELS = {EDIT: 4.0, "kling/video": 50.0}
UPLOADED = UploadedFile("https://host.example/u.png", "u.png", 3, "image/png")


def script(**options: Any) -> Script:
    given: dict[str, Any] = {"plans": Plan(duration=1.0), "models": MODELS, "render": False} | options
    return Script(**given)


async def test_the_input_goes_as_it_is(tmp_path: Path) -> None:
    """What is in fields that are named is uploaded, everything else is sent untouched; a result is a result."""
    (tmp_path / "house.png").write_bytes(picture(200))
    given = {
        "n": 2,
        "image_urls": [tmp_path / "house.png", picture(300), "https://host.example/a.png", UPLOADED],
        "prompt": "winter",
        "mask": io.BytesIO(picture(100)),
        "style": {"path": "house.png", "weights": [0.5, None, True]},
    }
    request = JobRequest(EDIT, given, image_fields=["image_urls", "mask"])
    async with emulated(script()) as (flux, emulator):
        result = await flux.generate(request)
        assert len(await flux.download(result, tmp_path / "out")) == 1
        assert result.record.credits_consumed == 4.0

    [call] = emulator.ledger.requests
    assert call.body is not None
    sent = call.body["input"]
    assert call.body["model"] == EDIT
    assert {name: sent[name] for name in ("n", "prompt", "style")} == {
        name: given[name] for name in ("n", "prompt", "style")
    }
    assert sorted(each.size for each in emulator.ledger.uploads) == [100, 200, 300]
    assert sent["image_urls"][2:] == ["https://host.example/a.png", UPLOADED.url]
    assert all(url.startswith(emulator.base_url) for url in (*sent["image_urls"][:2], sent["mask"]))
    assert [*sent] == [*given]


async def test_keys_and_streams() -> None:
    """A key stands for model and input, and other models run beside those of Flux-2."""
    async with emulated(script()) as (flux, emulator):
        first = await flux.submit(JobRequest(EDIT, {"prompt": "winter"}), key="order")
        assert await flux.submit(JobRequest(EDIT, {"prompt": "winter"}), key="order") is first
        for other in (JobRequest(EDIT, {"prompt": "summer"}), JobRequest("kling/video", {"prompt": "winter"}), REQUEST):
            assert "another request" in str(await error_of(flux.submit(other, key="order")))
        mixed: list[Request] = [REQUEST, JobRequest("kling/video", {"words": "a walk"}), JobRequest("unknown", {})]
        done = {each.index: each async for each in flux.as_completed(mixed)}
        assert [bool(done[index].error) for index in range(3)] == [False, False, True]
        assert isinstance(done[2].error, RequestRejectedError)
    assert len(emulator.ledger.accepted) == 3


async def test_a_video_is_saved(tmp_path: Path) -> None:
    """A result that is no picture is saved under the end of its format, where its length confirms it."""
    video = b"\0\0\0\x20ftypisom" + bytes(5000)
    async with serving(video) as host:
        plan = Plan(duration=1.0, result_urls=(host.url,))
        async with emulated(script(plans=plan)) as (flux, _):
            [path] = await flux.download(await flux.generate(JobRequest("kling/video", {})), tmp_path)
    assert path.suffix == ".mp4"
    assert path.read_bytes() == video


async def test_a_batch(tmp_path: Path) -> None:
    """A list names other models by `model` and `input`; a second run sends what is left and nothing twice."""
    (tmp_path / "house.png").write_bytes(picture(200))
    (tmp_path / "list.jsonl").write_text(
        '{"id": "a", "model": "google/nano-banana-edit", "input": {"prompt": "winter", "resolution": "4K", '
        '"image_urls": ["house.png"], "mask": "https://a.io/m.png"}, "image_fields": ["image_urls", "mask"], "x": 1}\n'
        '{"model": "kling/video", "input": {"words": ["a", "walk"]}}\n'
        '{"prompt": "a red kettle", "input": "a column"}\n'
    )
    async with emulated(script()) as (flux, emulator):
        first = await run(tmp_path, flux, read_jobs(tmp_path / "list.jsonl"), limit=1)
        outcomes = first + await run(tmp_path, flux, read_jobs(tmp_path / "list.jsonl"))
        assert await run(tmp_path, flux, read_jobs(tmp_path / "list.jsonl")) == []

    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    by_model = {outcome.model: outcome for outcome in outcomes}
    edit = by_model[EDIT]
    assert (edit.id, edit.prompt, edit.resolution, edit.tier, edit.extra) == ("a", "winter", "4K", "", {"x": 1})
    assert edit.images == (str(tmp_path / "house.png"), "https://a.io/m.png")
    assert by_model["flux-2/flex-text-to-image"].extra == {"input": "a column"}
    sent = [call.body["input"] for call in emulator.ledger.requests if call.body]
    assert sent[0]["image_urls"][0].startswith(emulator.base_url)
    assert (sent[0]["mask"], sent[1]) == ("https://a.io/m.png", {"words": ["a", "walk"]})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"input": {"prompt": "a red kettle"}}', "model: missing; with input it names"),
        ('{"input": {}, "model": "m", "prompt": "a red kettle"}', "prompt: given besides input"),
        ('{"input": {"a": "b.png"}, "model": "m", "image_fields": "b"}', "image_fields: 'b' given, and input has no"),
        ('{"input": {"a": 1}, "model": "m", "image_fields": ["a"]}', "input.a: int given"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, reason: str) -> None:
    """What is wrong with a line for another model is told as of any other."""
    (tmp_path / "list.jsonl").write_text(line)
    [bad] = read_jobs(tmp_path / "list.jsonl")
    assert isinstance(bad, BadLine)
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("", {}), {}, "model: '' given, it must be the API's id"),
        ((7, {}), {}, "model: 7 given"),
        (("m\n", {}), {}, "model"),
        (("m" * 201, {}), {}, "of at most 200 characters"),
        (("m", [1]), {}, "input: list given, it must be a mapping"),
        (("m", {"a": b"x"}), {}, r"input: cannot be written as JSON \(a: bytes given\)"),
        (("m", {"a": 1}), {"image_fields": ["a"]}, "input.a: int given, allowed are an http"),
        (("m", {"a": ["x.png", None]}), {"image_fields": ["a"]}, r"input.a\[1\]: NoneType given"),
        (("m", {"a": "data:image/png;base64,x"}), {"image_fields": ["a"]}, "input.a: a data: address given"),
        (("m", {"a": ""}), {"image_fields": ["a"]}, "input.a: '' given"),
        (("m", {"a": "x.png"}), {"image_fields": ["b"]}, "image_fields: 'b' given, and input has no such field"),
        (("m", {"a": "x.png"}), {"image_fields": ["a", "a"]}, "image_fields: it must be a list of different names"),
        (("m", {"a": "x.png"}), {"image_fields": 3}, "image_fields"),
    ],
)
def test_unusable_requests(arguments: tuple[Any, Any], options: dict[str, Any], words: str) -> None:
    """Only what could not be sent at all is refused here; the text names the place."""
    make: Any = JobRequest
    with pytest.raises(InvalidRequestError, match=words):
        make(*arguments, **options)


async def test_a_missing_file_is_named_by_its_field() -> None:
    """An error of a picture speaks of the field that holds it."""
    request = JobRequest(
        EDIT, {"image_urls": ["https://host.example/a.png", "missing.png"]}, image_fields=["image_urls"]
    )
    async with emulated(script()) as (flux, emulator):
        error = await error_of(flux.submit(request))
    assert str(error).startswith("input.image_urls[1]: neither an existing file nor an address")
    assert emulator.ledger.requests == []


def test_a_request_is_a_value() -> None:
    """It is compared, hashed, pickled and shown without what it says."""
    request = JobRequest(EDIT, {"prompt": "a secret wish", "a": b"picture"}, image_fields=["a"])
    assert request == pickle.loads(pickle.dumps(request)) == attrs.evolve(request)
    assert len({request, attrs.evolve(request)}) == 1
    assert "wish" not in repr(request)
    assert (request.prompt, request.aspect_ratio, request.resolution) == ("a secret wish", "", "")
    assert JobRequest(EDIT, {"prompt": 7}).prompt == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
PICTURE = st.sampled_from(["https://host.example/a.png", "https://host.example/b.png"])
NAMES = st.sampled_from(["prompt", "input_urls", "aspect_ratio", "resolution", "x", "image_fields"])


@st.composite
def job_requests(draw: Any) -> JobRequest:
    pictures = draw(st.dictionaries(NAMES, PICTURE | st.lists(PICTURE, max_size=2), max_size=2))
    return JobRequest("a/model", draw(st.dictionaries(NAMES, JSON, max_size=4)) | pictures, image_fields=[*pictures])


@given(job_requests(), job_requests())
async def test_what_is_stored_is_what_is_sent(one: JobRequest, other: JobRequest) -> None:
    """A request comes back from its parts as it was; two that are sent unlike have neither key nor digest in common."""
    images = [str(image) for image in images_of(one)]
    again = request_of(facts_of(one, images))
    assert isinstance(again, JobRequest)
    assert again.input == one.input
    assert names_of_images(again) != [] or images == []
    assert digest_of(again) == digest_of(one)
    assert await fingerprint(again) == await fingerprint(one)
    sent = [encode_request(each, [str(image) for image in images_of(each)]) for each in (one, other)]
    if sorted(sent[0]) != sorted(sent[1]):
        assert digest_of(one) != digest_of(other)
        assert await fingerprint(one) != await fingerprint(other)


async def test_the_journal_gives_the_same_request(tmp_path: Path) -> None:
    """What a job asks for is sent by the run after a crash as by the first one."""
    request = JobRequest(EDIT, {"b": [UPLOADED], "prompt": "", "a": {"z": 1}}, image_fields=["b"])
    async with Emulator(script()) as emulator:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            async with Flux2Session(emulator.api_key, base_url=emulator.base_url) as flux:
                await run(tmp_path / folder, flux, [Job(request, id="a"), TextToImage("a red kettle")])
    sent = [call.body["input"] for call in emulator.ledger.requests if call.body and call.body["model"] == EDIT]
    assert sent == [{"b": [UPLOADED.url], "prompt": "", "a": {"z": 1}}] * 2
