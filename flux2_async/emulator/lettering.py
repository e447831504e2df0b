"""Words on the emulator's pictures: the caption, the mark, and stand-ins for pictures that cannot be had."""

import functools
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

MARK = "EMULATED"
MOST_LINES = 2
PLACEHOLDER_SIZE = (768, 768)
# The font that comes with Pillow has Latin letters only.
FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc")


def mark(picture: Image.Image, prompt: str, label: str) -> Image.Image:
    """Write the caption, the prompt in two lines and a small label, over the lower edge, and the mark over a corner."""
    width, height = picture.size
    unit = max(12, round((width * height) ** 0.5 / 44))
    text, small = _font(unit), _font(round(unit * 0.68))
    lines = wrapped(prompt, text, width - 2 * unit, MOST_LINES)
    strip = round(unit * (1.3 * len(lines) + 2.2))
    shade = Image.new("RGB", (width, strip), (14, 14, 18))
    ramp = Image.linear_gradient("L").point([min(190, value * 3) for value in range(256)]).resize((width, strip))
    picture.paste(shade, (0, height - strip), ramp)
    draw = ImageDraw.Draw(picture)
    y = height - strip + unit * 0.7
    for line in lines:
        draw.text((unit, y), line, (245, 245, 247), text)
        y += unit * 1.3
    draw.text((unit, y), label, (190, 192, 200), small)
    # The mark, on a ribbon.
    unit = max(12, round(min(picture.size) / 34))
    length, thickness = unit * 14, round(unit * 1.9)
    ribbon = Image.new("RGBA", (length, length), (0, 0, 0, 0))
    draw = ImageDraw.Draw(ribbon)
    top = (length - thickness) / 2
    draw.rectangle((0, top, length, top + thickness), fill=(250, 204, 21, 235))
    draw.text((length / 2, length / 2), " ".join(MARK), (40, 32, 0, 255), _font(unit), anchor="mm")
    turned = ribbon.rotate(-45, Image.Resampling.BICUBIC)
    distance = round(unit * 3.4)
    picture.paste(turned, (picture.width - length // 2 - distance, distance - length // 2), turned)
    return picture


def placeholder(text: str) -> Image.Image:
    """A neutral picture in place of one that cannot be had, with a few words, or an address's host and file name."""
    picture = Image.new("RGB", PLACEHOLDER_SIZE, (206, 210, 216))
    draw = ImageDraw.Draw(picture)
    width, height = PLACEHOLDER_SIZE
    # Hills and a sun, the usual sign for "here would be a picture".
    draw.ellipse((470, 190, 570, 290), fill=(236, 238, 241))
    draw.polygon([(110, 560), (310, 270), (500, 560)], fill=(178, 184, 193))
    draw.polygon([(360, 560), (510, 370), (660, 560)], fill=(190, 196, 204))
    parts = urlsplit(text)
    words = filter(None, (parts.hostname, parts.path.rpartition("/")[2])) if parts.hostname else [text]
    for number, word in enumerate(words):
        line = word if not parts.hostname or len(word) <= 28 else word[:12] + "…" + word[-14:]  # noqa: PLR2004
        draw.text((width / 2, height * 0.79 + 44 * number), line, (96, 102, 112), _font(30), anchor="mm")
    return picture


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int) -> list[str]:
    """Text in at most so many lines of this width in pixels, with an … where it is cut."""
    # Nobody sees more than the first lines of five thousand characters.
    words = "".join(c if c.isprintable() else " " for c in text[:600]).split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = [_shortened(line, font, width) for line in lines[:most]]
    if len(lines) > most or len(text) > 600:  # noqa: PLR2004  as above
        kept[-1] = _shortened(kept[-1] + " …", font, width)
    return kept


def _shortened(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
