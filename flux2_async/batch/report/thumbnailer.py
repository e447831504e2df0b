"""The worker process that makes thumbnails: whatever a picture does to a decoder, it does it here.

Started by `thumbnails` as a plain script, so that it loads Pillow and nothing else. Each line of its standard input
is the path of a picture as JSON; each line of its standard output is the thumbnail in base64, or `no`. It writes no
file.
"""

import base64
import faulthandler
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

# Still sharp on a telephone, and half of the 1,024 that most pictures have, which makes decoding cheap.
SIDE: Final = 512
# Decoded, a quarter of a gigabyte; a telephone's camera has 50 million.
MAX_PIXELS: Final = 64_000_000
MAX_PROFILE: Final = 4096
# What decoding may take, in seconds. A picture that wants more ends this process.
DECODING_MAX: Final = 20


def make(source: str) -> bytes:
    """Give the thumbnail of a picture, a JPEG; whatever a decoder may raise, and ValueError for too many pixels."""
    with Image.open(source, formats=("JPEG", "PNG", "WEBP")) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        profile = picture.info.get("icc_profile") or b""
        keeps_profile = picture.mode == "RGB" and len(profile) <= MAX_PROFILE
        small = picture if picture.mode in ("L", "RGB") else flat(ImageOps.exif_transpose(picture))
        # A JPEG is then decoded at a quarter of the work, or less.
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=1.0)
        small = ImageOps.exif_transpose(small)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82, icc_profile=profile if keeps_profile else None)
    return file.getvalue()


def flat(picture: Image.Image) -> Image.Image:
    """Give a picture without transparency, of which JPEG knows nothing: what was transparent would come out black."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")


def main() -> None:
    """Work until the standard input ends."""
    # Ctrl-C is for the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The cap above is what counts; between half and all of Pillow's own it would only warn.
    Image.MAX_IMAGE_PIXELS = None
    with Path(os.devnull).open("w") as nowhere:
        for line in sys.stdin:
            source = json.loads(line)
            # Works while a decoder is busy, where no signal handler of Python would.
            faulthandler.dump_traceback_later(DECODING_MAX, exit=True, file=nowhere)
            try:
                answer = base64.b64encode(make(source)).decode()
            except Exception:  # noqa: BLE001  whatever it is, this picture has no thumbnail and the next one may
                answer = "no"
            faulthandler.cancel_dump_traceback_later()
            print(answer, flush=True)  # noqa: T201  the answer to the parent


if __name__ == "__main__":
    main()
