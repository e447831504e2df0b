"""What a file may be called."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from flux2_async._protocol import file_types, media

DIGEST = "0123456789abcdef" * 4


@given(st.none() | st.text(), st.sampled_from(["jpg", "png", "webp"]))
@example("../../etc/passwd", "png")
@example("C:\\Users\\me\\Bild 1.JPG", "jpg")
@example(".png", "png")
@example("-rf", "png")
def test_an_upload_name_is_plain_and_holds_the_hash(file_name: str | None, extension: str) -> None:
    """Any name of the caller's becomes one plain name with the hash and the extension of the content."""
    name = media.upload_name(DIGEST, extension, file_name)

    assert re.fullmatch(rf"([A-Za-z0-9_][A-Za-z0-9_-]{{0,63}}-)?{DIGEST[:32]}\.{extension}", name)


def test_an_upload_name_keeps_the_stem_that_the_caller_chose() -> None:
    """The caller can recognise the file; without a name it is the hash alone."""
    assert media.upload_name(DIGEST, "jpg", "/photos/my can_2.png") == f"my-can_2-{DIGEST[:32]}.jpg"
    assert media.upload_name(DIGEST, "jpg", None) == f"{DIGEST[:32]}.jpg"


@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True), st.integers(1, 9))
def test_a_task_id_that_is_a_plain_name_names_the_file(task_id: str, number: int) -> None:
    """The usual ids are found in the file name."""
    assert media.result_name(task_id, number, file_types.PNG) == f"{task_id}-{number}.png"


@given(st.text(st.characters()) | st.text("aZ0_-", min_size=129, max_size=140))
@example("../../.ssh/authorized_keys")
@example("a\n")
@example("")
@example("\ud800")
def test_no_task_id_leads_out_of_the_folder(task_id: str) -> None:
    """Any id gives a plain name; a strange one its hash, so that two of them differ."""
    name = media.result_name(task_id, 1, file_types.JPEG)

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}-1\.jpg", name)
    assert name == f"{task_id}-1.jpg" or re.fullmatch(r"[0-9a-f]{32}-1\.jpg", name)


def test_an_unknown_content_is_called_bin() -> None:
    """The extension never comes from outside."""
    assert media.result_name("t1", 2, None) == "t1-2.bin"
