"""Local pictures, looked at before anything is sent."""

import errno
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from file_host import JPEG, PNG, WEBP, picture

from flux2_async._http.file_objects import read_file_object
from flux2_async._http.local_picture import Picture, check_picture, read_picture
from flux2_async.errors import InvalidRequestError

MAX_PICTURE = 10_000_000


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.dat"
    path.write_bytes(picture(300_000))
    return path


@pytest.mark.parametrize(
    ("magic", "extension"), [(PNG, "png"), (JPEG, "jpg"), (WEBP, "webp")], ids=["png", "jpeg", "webp"]
)
def test_reads_type_size_and_hash_from_the_content(tmp_path: Path, magic: bytes, extension: str) -> None:
    """A file is what its content says, whatever it is called."""
    content = picture(700_000, magic=magic)
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    check_picture("images[0]", path)

    for source in (path, content):
        found = read_picture("images[0]", source)
        assert (found.media.extension, found.size) == (extension, 700_000)
        assert found.digest == hashlib.sha256(content).hexdigest()
        with found.open() as file:
            assert file.read() == content


@pytest.mark.parametrize("size", [40, MAX_PICTURE])
def test_the_largest_and_the_smallest_are_taken(size: int) -> None:
    """Ten million bytes are allowed, and so is next to nothing."""
    check_picture("images[0]", picture(size))


@pytest.mark.parametrize("look", [check_picture, read_picture])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"images\[3\]: 0 bytes given, allowed are 1 to 10000000 \(10 MB\)"),
        (picture(MAX_PICTURE + 1), r"images\[3\]: 10000001 bytes given, allowed are 1 to 10000000 \(10 MB\)"),
        (picture(11 * 1024 * 1024), r"images\[3\]: 11534336 bytes given, allowed are 1 to 10000000 \(10 MB\)"),
        (b"GIF89a" + bytes(100), r"images\[3\]: GIF given, allowed are JPEG, PNG and WebP"),
        (b"<html>secret</html>", r"images\[3\]: text given, allowed are JPEG, PNG and WebP"),
    ],
    ids=["empty", "one too many", "11 MB", "gif", "html"],
)
@pytest.mark.parametrize("as_file", [True, False], ids=["path", "bytes"])
def test_content_that_the_api_refuses(
    tmp_path: Path, look: object, content: bytes, text: str, *, as_file: bool
) -> None:
    """The text names the field, what was given and what is allowed; for a file also which."""
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert callable(look)

    with pytest.raises(InvalidRequestError, match=text) as caught:
        look("images[3]", path if as_file else content)
    assert as_file == (repr(str(path)) in str(caught.value))
    assert "secret" not in str(caught.value)


# A first part that holds a whole picture, as the thumbnails of cameras are held.
THUMBNAIL = b"\xff\xd8\xff\xe1\x00\x2a" + picture(40, magic=JPEG)


@pytest.mark.parametrize("look", [check_picture, read_picture])
@pytest.mark.parametrize("as_file", [True, False], ids=["path", "bytes"])
@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("PNG", picture(600_000)),
        ("JPEG", picture(600_000, magic=JPEG)),
        ("JPEG", THUMBNAIL + picture(600_000, magic=JPEG)[2:]),
        ("WebP", picture(600_000, magic=WEBP)),
    ],
    ids=["png", "jpeg", "jpeg with a thumbnail", "webp"],
)
def test_a_picture_that_was_cut_off_is_refused(
    tmp_path: Path, look: Callable[[str, Path | bytes], object], kind: str, whole: bytes, *, as_file: bool
) -> None:
    """Wherever it was cut, also in the first bytes; whole, it is taken, and so is what stands behind its end."""
    path = tmp_path / "photo.jpg"

    def given(content: bytes) -> Path | bytes:
        path.write_bytes(content)
        return path if as_file else content

    for size in (30, 300_000, len(whole) - 2):
        with pytest.raises(InvalidRequestError, match=rf"^images\[0\]: the {kind} is not whole, .*download it again"):
            look("images[0]", given(whole[:size]))
    for behind in (b"", b"\0", b"ftypmp42" * 50_000):
        look("images[0]", given(whole + behind))


def test_a_cut_that_looks_like_an_end_is_found_when_it_is_read() -> None:
    """A photograph of which only what ends with its thumbnail is there."""
    with pytest.raises(InvalidRequestError, match=r"^images\[0\]: the JPEG is not whole"):
        read_picture("images[0]", THUMBNAIL)


def test_a_picture_that_ends_as_it_should_is_not_read_to_be_checked(tmp_path: Path) -> None:
    """A list of many photographs is checked by their first and last bytes: what is wrong between them is not seen."""
    for magic in (PNG, JPEG, WEBP):
        path = tmp_path / "photo"
        path.write_bytes(picture(600_000, magic=magic))
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(bytes(500_000))
        check_picture("images[0]", path)


@pytest.mark.parametrize("name", ["missing.png", "example.com/a.jpg", "photo.dat/a.png", "broken", "nul\0"])
def test_a_name_without_a_file(tmp_path: Path, photo: Path, name: str) -> None:
    """What might have been meant as an address is told to lack its scheme."""
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    expected = (
        "cannot be read: .*embedded null" if "\0" in name else "neither an existing file nor an address with http://"
    )

    with pytest.raises(InvalidRequestError, match=rf"^images\[0\]: .*{expected}") as caught:
        check_picture("images[0]", tmp_path / name)
    assert name in str(caught.value) or "\0" in name


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    """A folder is named as such."""
    with pytest.raises(InvalidRequestError, match=r"images\[0\]: a folder given"):
        check_picture("images[0]", tmp_path)


def test_what_would_block_is_not_opened(tmp_path: Path) -> None:
    """A pipe, which would wait for its other end, is refused at once."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InvalidRequestError, match=r"images\[0\]: not a regular file given"):
        check_picture("images[0]", tmp_path / "pipe")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The system's reason is given, without the name's own length of text."""
    # Root may read everything, so the name itself has to be what the system refuses.
    with pytest.raises(InvalidRequestError, match=r"cannot be read: File name too long") as caught:
        check_picture("images[0]", tmp_path / ("iVBORw0KGgo" * 100))
    assert "iVBOR" not in str(caught.value)
    assert "a name of" in str(caught.value)


@pytest.mark.parametrize("change", ["longer", "rewritten", "replaced", "removed"])
def test_a_file_that_changes_is_noticed(photo: Path, change: str) -> None:
    """What no longer matches the hash in its name is not sent, or not kept."""
    found = read_picture("images[1]", photo)
    found.check_unchanged()
    match change:
        case "longer":
            with photo.open("ab") as file:
                file.write(b"!")
        case "rewritten":
            photo.write_bytes(picture(300_000, seed=1))
            os.utime(photo, (1, 1))
        case "replaced":
            status = photo.stat()
            other = photo.with_name("other")
            other.write_bytes(picture(300_000, seed=2))
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.replace(photo)
        case _:
            photo.unlink()

    for look in (found.open, found.check_unchanged):
        with pytest.raises(
            InvalidRequestError, match=r"images\[1\]: (it changed while it was uploaded|neither an existing file)"
        ):
            look()


def test_the_content_is_in_no_repr() -> None:
    """A picture can be logged without its content."""
    found = read_picture("images[0]", picture(40) + b"secret")

    assert isinstance(found, Picture)
    assert "secret" not in repr(found)


class Drips(io.BytesIO):
    """A binary file object that gives less than it is asked for, as a pipe does."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        return super().read(min(size, 1000))


async def test_a_file_object_is_read_from_where_it_stands() -> None:
    """What was read before is not read again, and the object stays open."""
    stream = io.BytesIO(b"header" + picture(600_000))
    stream.seek(6)

    assert await read_file_object("source", stream, MAX_PICTURE) == picture(600_000)
    assert not stream.closed


async def test_a_file_object_may_give_little_at_a_time() -> None:
    """Short reads are not the end."""
    assert await read_file_object("source", Drips(picture(50_000)), MAX_PICTURE) == picture(50_000)


async def test_an_endless_file_object_is_left_off() -> None:
    """No more is read than shows that it is too large."""

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            return bytes(size)

    assert MAX_PICTURE < len(await read_file_object("source", Endless(), MAX_PICTURE)) < MAX_PICTURE + 1_000_000


async def test_a_text_file_is_refused() -> None:
    """The text says how to open it."""
    with pytest.raises(InvalidRequestError, match=r"source: a file object that gives str; open it with 'rb'"):
        await read_file_object("source", io.StringIO("text"), MAX_PICTURE)


async def test_a_file_object_that_fails() -> None:
    """A closed file and a failing one are named, with the reason."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    closed = io.BytesIO()
    closed.close()

    for stream, reason in ((closed, "I/O operation on closed file"), (Broken(), "Input/output error")):
        with pytest.raises(InvalidRequestError, match=rf"source: the file object cannot be read \({reason}"):
            await read_file_object("source", stream, MAX_PICTURE)
