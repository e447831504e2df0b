"""Requests: frozen, checked when made, without I/O.

Names follow the API where it has one (`aspect_ratio`, `resolution`, `fail_code` for `failCode`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeGuard, get_args

import attrs

from flux2_async._shown.frames import showable
from flux2_async.errors import InvalidRequestError
from flux2_async.models.image_sources import (
    PLAIN_ADDRESS,
    ContentSource,
    ImageSource,
    UploadedFile,
    check_picture,
    is_single,
    plain_picture,
)
from flux2_async.models.plain import plain, plain_fields
from flux2_async.models.plain_json import check_text, plain_object, shown

__all__ = [
    "AspectRatio",
    "FixedAspectRatio",
    "ImageSource",
    "ImageToImage",
    "JobRequest",
    "Request",
    "Resolution",
    "TextToImage",
    "Tier",
    "UploadedFile",
]

FixedAspectRatio: TypeAlias = Literal["1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3"]
"""Width to height, as `TextToImage` takes it."""

AspectRatio: TypeAlias = FixedAspectRatio | Literal["auto"]
"""Width to height, as `ImageToImage` takes it: `auto` is the ratio of the first picture."""

Resolution: TypeAlias = Literal["1K", "2K"]
"""How large a picture is: about 1024 or 2048 pixels a side, where it is square."""

Tier: TypeAlias = Literal["flex", "pro"]
"""Which of the two models of Flux-2 makes a picture."""

# From the API's own pages; the lower bound of the prompt stands in their prose only.
PROMPT_LENGTHS: Final = (3, 5000)
MAX_IMAGES: Final = 8
RATIOS: Final[tuple[FixedAspectRatio, ...]] = get_args(FixedAspectRatio)
ASPECT_RATIOS: Final[tuple[AspectRatio, ...]] = (*RATIOS, "auto")
RESOLUTIONS: Final[tuple[Resolution, ...]] = get_args(Resolution)
TIERS: Final[tuple[Tier, ...]] = get_args(Tier)
MAX_MODEL: Final = 200

_TEXT: Final = frozenset({str})


def _one_of(allowed: tuple[str, ...]) -> Any:
    def check(_: object, attribute: "attrs.Attribute[str]", value: object) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidRequestError(f"{attribute.name}: {shown(value)} given, allowed are {_choices(allowed)}")

    return check


def _choices(allowed: tuple[str, ...]) -> str:
    return ", ".join(map(repr, allowed))


def _check_aspect_ratio(request: object, _: "attrs.Attribute[Any]", value: object) -> None:
    allowed = ASPECT_RATIOS if isinstance(request, ImageToImage) else RATIOS
    if not isinstance(value, str) or value not in allowed:
        auto = "'auto' takes the ratio of the first picture and there is none"
        given = auto if value == "auto" else f"{shown(value)} given"
        raise InvalidRequestError(f"aspect_ratio: {given}, allowed are {_choices(allowed)}")


def _check_prompt(_: object, __: "attrs.Attribute[str]", value: object) -> None:
    low, high = PROMPT_LENGTHS
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"prompt: {type(value).__name__} given, it must be text of {low} to {high} characters"
        )
    # Blanks at the ends are sent as they are, but do not make a prompt.
    if len(value.strip()) < low or len(value) > high:
        blank = low <= len(value) <= high
        count = len(value.strip()) if blank else len(value)
        given = f"{count} character{'s' * (count != 1)}{' besides blanks' * blank}"
        raise InvalidRequestError(f"prompt: {given} given, allowed are {low} to {high}")
    check_text("prompt", value)


def _plain_extra_input(value: object) -> dict[str, Any]:
    return plain_object("extra_input", value)


def _check_extra_input(_: object, __: "attrs.Attribute[Any]", value: dict[str, Any]) -> None:
    if not value:
        return
    taken = sorted({"prompt", "input_urls", "aspect_ratio", "resolution"} & value.keys())
    if taken:
        raise InvalidRequestError(f"extra_input: {taken[0]!r} given, use the field of the request instead")


def _images_to_tuple(value: Iterable[ImageSource | ContentSource]) -> tuple[ImageSource, ...]:
    if type(value) in (list, tuple):
        if _TEXT.issuperset(map(type, value)):
            # As in most requests.
            return tuple(value)  # type: ignore[arg-type]  # looked at in the line above
    elif is_single(value):
        raise InvalidRequestError(
            f"images: {type(value).__name__} given, it must be a list of 1 to {MAX_IMAGES} pictures; "
            "put a single one into a list: images=[picture]"
        )
    return tuple([plain_picture(f"images[{number}]", image) for number, image in enumerate(value)])


def _check_images(_: object, __: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
    if not 1 <= len(value) <= MAX_IMAGES:
        raise InvalidRequestError(f"images: {len(value)} given, allowed are 1 to {MAX_IMAGES}")
    if not (_TEXT.issuperset(map(type, value)) and all(map(PLAIN_ADDRESS.fullmatch, value))):  # type: ignore[arg-type]  # text
        for number, image in enumerate(value):
            check_picture(f"images[{number}]", image)


def _lengths(value: str) -> str:
    return f"<{len(value)} characters>"


# Made for its subclasses alone, each of which makes its methods anew.
@attrs.frozen(init=False, eq=False, repr=False, field_transformer=plain_fields)
class _Request:
    prompt: str = attrs.field(validator=_check_prompt, repr=_lengths)
    aspect_ratio: AspectRatio = attrs.field(default="1:1", validator=_check_aspect_ratio, kw_only=True)
    resolution: Resolution = attrs.field(default="1K", validator=_one_of(RESOLUTIONS), kw_only=True)
    tier: Tier = attrs.field(default="flex", validator=_one_of(TIERS), kw_only=True)
    extra_input: dict[str, Any] = attrs.field(
        factory=dict,
        converter=_plain_extra_input,
        validator=_check_extra_input,
        kw_only=True,
        hash=False,
        repr=lambda value: f"<{len(value)} fields>",
    )

    @property
    def input(self) -> dict[str, Any]:
        """All that the request says besides its model: the API's `input`, a new dictionary each time.

        What is sent, what a `key` stands for and what a batch knows a request by come from here, so a subclass with
        one more field adds it here and nowhere else.
        """
        shape = {"prompt": self.prompt, "aspect_ratio": self.aspect_ratio, "resolution": self.resolution}
        return {**shape, **self.extra_input}


@showable
@attrs.frozen(field_transformer=plain_fields)
class TextToImage(_Request):
    """A picture from words alone.

    Attributes:
        prompt: What to draw, 3 to 5000 characters (documented).
        aspect_ratio: Width to height: `1:1`, `4:3`, `3:4`, `16:9`, `9:16`, `3:2` or `2:3`.
        resolution: `1K` or `2K`.
        tier: `flex` or `pro`.
        extra_input: Further fields of the API's `input`, sent untouched.

    Raises:
        InvalidRequestError: A field is out of bounds.
    """

    aspect_ratio: FixedAspectRatio = attrs.field(default="1:1", validator=_check_aspect_ratio, kw_only=True)

    @property
    def model(self) -> str:
        """The API's id of the model."""
        return f"flux-2/{self.tier}-text-to-image"


@showable
@attrs.frozen(field_transformer=plain_fields)
class ImageToImage(_Request):
    """A picture from words and 1 to 8 reference pictures.

    Attributes:
        prompt: What to do with the pictures, 3 to 5000 characters (documented); "image 1" is the first of `images`.
        images: The reference pictures in order. Each is an http(s) address, a path, the content of a file
            as bytes, bytearray, memoryview or BytesIO (kept as bytes), or an `UploadedFile`; JPEG, PNG or WebP of at
            most 10 MB (documented). What is local is uploaded by `submit`.
        aspect_ratio: Width to height: `1:1`, `4:3`, `3:4`, `16:9`, `9:16`, `3:2`, `2:3`, or `auto` for the
            ratio of the first picture. `1:1` unless given, as the API has it: a square, whatever shape that
            picture has. `flux2 edit`, lists of batches and the tools of `flux2 mcp` take `auto` then.
        resolution: `1K` or `2K`.
        tier: `flex` or `pro`.
        extra_input: Further fields of the API's `input`, sent untouched.

    Raises:
        InvalidRequestError: A field is out of bounds.
    """

    images: tuple[ImageSource, ...] = attrs.field(
        converter=_images_to_tuple, validator=_check_images, kw_only=True, repr=lambda value: f"<{len(value)} pictures>"
    )

    @property
    def model(self) -> str:
        """The API's id of the model."""
        return f"flux-2/{self.tier}-image-to-image"

    @property
    def input(self) -> dict[str, Any]:
        """All that the request says besides its model: the API's `input`, a new dictionary each time.

        In `input_urls` are the pictures as they were given; sent are their addresses.
        """
        return {"input_urls": self.images, **super().input}


def _field_names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
        raise InvalidRequestError("image_fields: it must be a list of different names of fields of input")
    return tuple(plain(name) for name in names if name)


def _job_input(value: Any, job: Any) -> dict[str, Any]:
    pictures = {}
    if isinstance(value, Mapping):
        missing = [name for name in job.image_fields if name not in value]
        if missing:
            raise InvalidRequestError(f"image_fields: {shown(missing[0])} given, and input has no such field")
        pictures = {name: _job_pictures(f"input.{name}", value[name]) for name in job.image_fields}
        value = {name: None if name in pictures else each for name, each in value.items()}
    return plain_object("input", value) | pictures


def _job_pictures(name: str, value: Any) -> "ImageSource | tuple[ImageSource, ...]":
    """Give a picture, or several where there is a list."""
    one = type(value) not in (list, tuple) and is_single(value)
    named = {name: value} if one else {f"{name}[{number}]": each for number, each in enumerate(value)}
    taken = [plain_picture(each, image) for each, image in named.items()]
    for each, image in zip(named, taken, strict=True):
        check_picture(each, image)
    return taken[0] if one else tuple(taken)


def _check_model(_: object, __: "attrs.Attribute[str]", value: object) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_MODEL:
        raise InvalidRequestError(
            f"model: {shown(value)} given, it must be the API's id of a model, of at most {MAX_MODEL} characters"
        )
    check_text("model", value)


@showable
@attrs.frozen(field_transformer=plain_fields)
class JobRequest:
    """A request of any other model of the jobs API; the page of that model says what its `input` has to hold.

        JobRequest(
            "google/nano-banana-edit",
            {"prompt": "make it winter", "image_urls": ["house.jpg"]},
            image_fields=["image_urls"],
        )

    Of `input` only that it is JSON is checked here: what the service does not accept it refuses.

    Attributes:
        model: The API's id of the model.
        input: The API's `input`, sent as it is.
        image_fields: Names of fields of `input` that hold pictures, each a picture or a list of them as `images` of
            `ImageToImage` takes them; what is local there is uploaded by `submit`. A path in a field that is not
            named is sent as the text it is.

    Raises:
        InvalidRequestError: A field is missing, or is no JSON or no picture.
    """

    image_fields: tuple[str, ...] = attrs.field(default=(), converter=_field_names, kw_only=True)
    model: str = attrs.field(validator=_check_model)
    input: dict[str, Any] = attrs.field(
        converter=attrs.Converter(_job_input, takes_self=True),  # type: ignore[misc]  # mypy's plugin knows plain functions
        hash=False,
        repr=lambda value: f"<{len(value)} fields>",
    )

    @property
    def prompt(self) -> str:
        """The text of the field `prompt`, empty without one."""
        return self._text("prompt")

    @property
    def aspect_ratio(self) -> str:
        """The text of the field `aspect_ratio`, likewise."""
        return self._text("aspect_ratio")

    @property
    def resolution(self) -> str:
        """The text of the field `resolution`, likewise; with the model it is what a price is known by."""
        return self._text("resolution")

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The pictures of all fields that are named, in the order of `input`."""
        return tuple(image for _, image in self._named())

    def _text(self, field: str) -> str:
        value = self.input.get(field)
        return value if isinstance(value, str) and field not in self.image_fields else ""

    def _named(self) -> Iterator[tuple[str, ImageSource]]:
        for field, value in self.input.items():
            if field in self.image_fields and isinstance(value, tuple):
                yield from ((f"input.{field}[{number}]", image) for number, image in enumerate(value))
            elif field in self.image_fields:
                yield f"input.{field}", value

    def _filled(self, images: Iterable[Any]) -> dict[str, Any]:
        """Give `input` with something else in the places of its pictures."""
        left = iter(images)
        return {
            field: value
            if field not in self.image_fields
            else tuple(next(left) for _ in value)
            if isinstance(value, tuple)
            else next(left)
            for field, value in self.input.items()
        }


Request = ImageToImage | TextToImage | JobRequest
REQUESTS: Final = "ImageToImage, TextToImage and JobRequest"


def images_of(request: Request) -> tuple[ImageSource, ...]:
    """The reference pictures of a request, none where it is made from words alone."""
    return () if isinstance(request, TextToImage) else request.images


def are_addresses(images: Sequence[ImageSource]) -> TypeGuard[Sequence[str]]:
    """Whether all are plainly addresses, as in most requests: then there is nothing to look at, or to upload."""
    return not [image for image in images if type(image) is not str or not image.startswith(("https://", "http://"))]


def names_of_images(request: Request) -> list[str]:
    """By what errors speak of these pictures, such as `images[0]`."""
    if isinstance(request, JobRequest):
        return [name for name, _ in request._named()]  # noqa: SLF001  of this module
    return [f"images[{number}]" for number in range(len(images_of(request)))]


def with_images(request: Request, images: Sequence[ImageSource]) -> Request:
    """The request with other pictures in the places of its own."""
    if isinstance(request, JobRequest):
        return attrs.evolve(request, input=request._filled(images))  # noqa: SLF001  of this module
    return attrs.evolve(request, images=images) if isinstance(request, ImageToImage) else request


def input_of(request: Request, addresses: Sequence[str]) -> dict[str, Any]:
    """The API's `input`, with the addresses of the pictures in their places."""
    if isinstance(request, JobRequest):
        return request._filled(addresses)  # noqa: SLF001  of this module
    return request.input | ({"input_urls": addresses} if addresses else {})


def facts_of(request: Request, images: Sequence[str]) -> dict[str, Any]:
    """What a request says, in parts that can be stored; two that are sent alike have the same.

    Args:
        request: The request.
        images: What stands for its pictures, in their order.

    Returns:
        `model`, `prompt`, `images`, `aspect_ratio`, `resolution`, `tier`, and in `extra_input` whatever else is sent.
        Of a `JobRequest` `tier` is empty, and `extra_input` has in `input` all but its prompt, with the number of
        pictures (None: one, no list) in each of `image_fields`.
    """
    if isinstance(request, JobRequest):
        fields = {
            name: (len(value) if isinstance(value, tuple) else None) if name in request.image_fields else value
            for name, value in request.input.items()
            if name != "prompt" or not request.prompt
        }
        extra = {"input": fields, "image_fields": list(request.image_fields)}
        shape = {"aspect_ratio": request.aspect_ratio, "resolution": request.resolution, "tier": ""}
        return {"model": request.model, "prompt": request.prompt, "images": list(images), **shape, "extra_input": extra}
    rest = request.input
    rest.pop("input_urls", None)
    shape = {name: rest.pop(name) for name in ("prompt", "aspect_ratio", "resolution")}
    return {"model": request.model, "images": list(images), **shape, "tier": request.tier, "extra_input": rest}


def request_of(facts: Mapping[str, Any]) -> Request:
    """The request of which `facts_of` told."""
    images, extra = facts["images"], facts["extra_input"]
    if not facts["tier"]:
        left = iter(images)
        told = {"prompt": facts["prompt"]} if facts["prompt"] else {}
        fields = {
            name: value
            if name not in extra["image_fields"]
            else next(left)
            if value is None
            else [next(left) for _ in range(value)]
            for name, value in extra["input"].items()
        }
        return JobRequest(facts["model"], told | fields, image_fields=extra["image_fields"])
    shape = {name: facts[name] for name in ("aspect_ratio", "resolution", "tier", "extra_input")}
    return ImageToImage(facts["prompt"], images=images, **shape) if images else TextToImage(facts["prompt"], **shape)
