"""Whether the service takes a createTask body; the words are those that were observed where any were."""

import ipaddress
import socket
from collections.abc import Container, Mapping
from typing import Any
from urllib.parse import urlsplit

from flux2_async.emulator.render import SIZES_1K
from flux2_async.emulator.replies import Refusal

PRICES: Mapping[str, Mapping[str, float]] = {
    "flux-2/flex-image-to-image": {"1K": 14.0, "2K": 24.0},
    "flux-2/pro-image-to-image": {"1K": 5.0, "2K": 7.0},
    "flux-2/flex-text-to-image": {"1K": 14.0, "2K": 24.0},
    "flux-2/pro-text-to-image": {"1K": 5.0, "2K": 7.0},
}
"""Upstream's credits per picture, by model and resolution."""

RATIOS = tuple(SIZES_1K)
PROMPT_SHORTEST, PROMPT_LONGEST = 3, 5000
MOST_IMAGES = 8
LONGEST_ADDRESS = 2048
INNER_NAMES = (".localhost", ".local", ".internal", ".lan", ".invalid")


def is_address(text: object) -> bool:
    """Whether it is an http(s) address that a fetcher could use as it stands: raw spaces make it none."""
    if not isinstance(text, str) or len(text) > LONGEST_ADDRESS or any(c.isspace() for c in text):
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def is_public(address: str) -> bool:
    """Whether the internet could have a host of this name or number."""
    host = (urlsplit(address).hostname or "").removesuffix(".")
    try:
        # To a resolver 127.1, 0x7f.1 and 2130706433 are numbers as well.
        return ipaddress.ip_address(host if ":" in host else socket.inet_aton(host)).is_global
    except (ValueError, OSError):
        return "." in host and not host.endswith(INNER_NAMES)


def check(body: Mapping[str, Any], others: Container[str] = ()) -> None:
    """Refuse what the service would not take; it passes over fields it does not know, and all input of `others`.

    It answers 422 to an unknown model or a value out of bounds, 500 to a missing field or a wrong type (sic).
    """
    model = body.get("model")
    if model is None:
        raise Refusal(500, "This field is required")
    if not isinstance(model, str) or (model not in PRICES and model not in others):
        raise Refusal(422, "The page does not exist or is not published")
    if "callBackUrl" in body and not is_address(body["callBackUrl"]):
        raise Refusal(422, "callBackUrl is not a valid URL")
    given = body.get("input")
    if given is None:
        raise Refusal(500, "This field is required")
    if not isinstance(given, Mapping):
        raise Refusal(500, "input it must be an object")
    if model in PRICES:
        _check_input(given, with_images=model.endswith("image-to-image"))


def _check_input(given: Mapping[str, Any], *, with_images: bool) -> None:
    for name in (*(["input_urls"] if with_images else []), "prompt", "aspect_ratio", "resolution"):
        if given.get(name) is None:
            raise Refusal(500, "This field is required")
    prompt = given["prompt"]
    if not isinstance(prompt, str):
        raise Refusal(500, "prompt it must be a string")
    if not PROMPT_SHORTEST <= len(prompt) <= PROMPT_LONGEST:
        raise Refusal(422, f"prompt length must be between {PROMPT_SHORTEST} and {PROMPT_LONGEST} characters")
    choices = {"aspect_ratio": (*RATIOS, "auto") if with_images else RATIOS, "resolution": ("1K", "2K")}
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise Refusal(422, f"{name} is not within the range of allowed options: {', '.join(allowed)}")
    if with_images:
        _check_images(given["input_urls"])
    if "nsfw_checker" in given and not isinstance(given["nsfw_checker"], bool):
        raise Refusal(500, "nsfw_checker it must be a boolean")


def _check_images(addresses: object) -> None:
    if not isinstance(addresses, list):
        raise Refusal(500, "input_urls it must be an array")
    if not 1 <= len(addresses) <= MOST_IMAGES:
        raise Refusal(422, f"input_urls must hold between 1 and {MOST_IMAGES} images")
    if not all(is_address(address) for address in addresses):
        raise Refusal(422, "input_urls holds an invalid URL")
