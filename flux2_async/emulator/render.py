"""Drawing a result: a collage of the reference pictures, or an abstract landscape out of the prompt.

Everything follows from what is asked for, so the same gives the same bytes. Pillow is imported when the first picture
is drawn, and only here and in the two modules that paint and write.

Sizes are multiples of 16 and exactly in the ratio. `auto` takes the ratio of the first reference picture (at most 3:1),
at about 1 or 4 megapixels.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

SIZES_1K: Mapping[str, tuple[int, int]] = {
    "1:1": (1024, 1024),
    "4:3": (1152, 864),
    "3:4": (864, 1152),
    "16:9": (1280, 720),
    "9:16": (720, 1280),
    "3:2": (1248, 832),
    "2:3": (832, 1248),
}
"""Width and height at 1K; 2K has twice of both."""

STEP = 16
WIDEST = 3.0
# A picture of more pixels than any camera's is a mistake or an attack.
MOST_PIXELS = 100_000_000

MISSING = 'drawing a picture needs Pillow: pip install "flux2-async[emulator]" (or use Script(render=False))'


def draw(
    prompt: str,
    ratio: str = "1:1",
    resolution: str = "1K",
    *,
    label: str = "",
    references: Sequence[bytes | str] = (),
    number: int = 0,
    kind: Literal["jpeg", "png"] = "jpeg",
) -> bytes:
    """Draw a picture, a JPEG or a PNG; the ImportError without Pillow says how to get it.

    The prompt is written in the caption, above the label, and is the seed of colours and shapes. `references` are
    encoded pictures, or the addresses of those that cannot be had; `number` is which picture of its task it is, from 0:
    each differs a little.
    """
    try:
        from flux2_async.emulator import lettering, painting  # noqa: PLC0415  Pillow comes with an extra
    except ModuleNotFoundError as missing:
        raise ImportError(MISSING) from missing
    seed = hashlib.sha256(f"{number}\n{prompt}".encode(errors="surrogatepass")).digest()
    random = Random(seed)  # noqa: S311  colours are no secrets
    pictures = [_opened(reference) for reference in references]
    size = size_of(ratio, resolution, pictures[0].size if pictures else None)
    picture = painting.collage(pictures, size, random) if pictures else painting.landscape(size, random)
    buffer, options = io.BytesIO(), {"compress_level": 1} if kind == "png" else {"quality": 90}
    lettering.mark(picture, prompt, label).save(buffer, kind, **options)
    return buffer.getvalue()


def size_of(ratio: str, resolution: str, first: tuple[int, int] | None = None) -> tuple[int, int]:
    """Width and height of a result; `auto` goes by the size of the first reference picture, and is square without."""
    scale = 2 if resolution == "2K" else 1
    if ratio != "auto":
        width, height = SIZES_1K[ratio]
        return width * scale, height * scale
    shape = 1.0 if first is None else min(max(first[0] / first[1], 1 / WIDEST), WIDEST)
    side = 1024 * scale
    return _stepped(side * math.sqrt(shape)), _stepped(side / math.sqrt(shape))


def _stepped(length: float) -> int:
    return max(STEP, round(length / STEP) * STEP)


def _opened(reference: bytes | str) -> "Image.Image":
    from PIL import Image, ImageOps  # noqa: PLC0415  as above

    from flux2_async.emulator import lettering  # noqa: PLC0415  as above

    if isinstance(reference, str):
        return lettering.placeholder(reference)
    try:
        picture = Image.open(io.BytesIO(reference))
        if picture.width * picture.height > MOST_PIXELS:
            return lettering.placeholder("a picture too large to open")
        # A photograph of 40 megapixels is decoded at an eighth of the work when JPEG offers it.
        picture.draft("RGB", (2560, 2560))
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return lettering.placeholder("a picture that cannot be opened")
