"""Colours and gradients for the emulator's pictures."""

import colorsys
from random import Random
from typing import TypeAlias

from PIL import Image

Colour: TypeAlias = tuple[int, int, int]

# Light, middle and dark; chosen by eye, since arithmetic on hues also gives olive and lilac.
HUES = (
    (0.11, 0.97, 0.72),
    (0.13, 0.58, 0.70),
    (0.06, 0.92, 0.66),
    (0.47, 0.46, 0.54),
    (0.55, 0.60, 0.66),
    (0.16, 0.38, 0.46),
    (0.93, 0.76, 0.68),
    (0.09, 0.05, 0.97),
)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour; every argument counts 0 to 1, the hue goes round."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def mixed(one: Colour, other: Colour, part: float) -> Colour:
    """`one` with this part of `other` in it."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def harmony(random: Random) -> tuple[Colour, Colour, Colour]:
    """A light, a middle and a dark colour that go together."""
    shift = random.uniform(-0.025, 0.025)
    light, middle, dark = random.choice(HUES)
    return (
        hsv(light + shift, random.uniform(0.25, 0.45), 0.98),
        hsv(middle + shift, random.uniform(0.42, 0.6), random.uniform(0.7, 0.85)),
        hsv(dark + shift, random.uniform(0.5, 0.7), random.uniform(0.2, 0.32)),
    )


def gradient(size: tuple[int, int], first: Colour, last: Colour, angle: float = 0.0) -> Image.Image:
    """From one colour at the top to the other at the bottom, the whole turned by so many degrees."""
    ramp = Image.linear_gradient("L")
    if angle:
        # Turned, the square lacks corners: its inner part has them all.
        ramp = ramp.rotate(angle, Image.Resampling.BICUBIC).crop((38, 38, 218, 218))
    mask = ramp.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, last), Image.new("RGB", size, first), mask)
