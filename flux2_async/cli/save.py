"""Pictures under the names that were asked for, with the content their names promise."""

import tempfile
from pathlib import Path

import anyio.to_thread
from PIL import Image

from flux2_async._http.atomic_file import replacing
from flux2_async.cli.options import EXTENSIONS, Target
from flux2_async.models import ImageResult
from flux2_async.session.session import Flux2Session

QUALITY = 95


async def save(flux: Flux2Session, result: ImageResult, target: Target) -> list[Path]:
    """Download the pictures of a task; a second one is named `out-2.png`.

    OSError: a file cannot be written, or not be converted; in the latter case it is kept as it came.
    """
    if target.name is None:
        return await flux.download(result, target.folder)
    wanted = target.folder / target.name
    # In the same folder, so that the last step is a mere renaming.
    with tempfile.TemporaryDirectory(prefix=".flux2-", dir=target.folder) as scratch:
        files = await flux.download(result, scratch)
        names = [wanted, *(wanted.with_stem(f"{wanted.stem}-{n}") for n in range(2, len(files) + 1))]
        return [await anyio.to_thread.run_sync(publish, file, name) for file, name in zip(files, names, strict=True)]


def publish(file: Path, name: Path) -> Path:
    """Give a downloaded file its name, converted where the name promises another format; see `save`."""
    kind = EXTENSIONS[name.suffix.lower()]
    try:
        with Image.open(file) as picture:
            if picture.format != kind:
                from flux2_async.batch.report.thumbnailer import flat  # noqa: PLC0415  few pictures need it

                picture.load()
                converted = flat(picture) if kind == "JPEG" else picture
                with replacing(name) as other:
                    converted.save(other, kind, quality=QUALITY, icc_profile=picture.info.get("icc_profile"))
                return name
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kept = name.with_name(file.name)
        file.replace(kept)
        raise OSError(f"the picture cannot be made a {kind} ({error}); it is kept as {kept}") from None
    return file.replace(name)
