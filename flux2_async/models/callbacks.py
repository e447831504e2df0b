"""Where the service tells that a task is finished: frozen, checked when made."""

import re
from typing import Any, Final

import attrs

from flux2_async._shown.frames import made_without_frames, showable
from flux2_async._shown.text import shown_address
from flux2_async.errors import ConfigurationError
from flux2_async.models.image_sources import http_parts
from flux2_async.models.settings import by_type

__all__ = ["Callbacks"]

_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def _check_callback_url(_: object, __: "attrs.Attribute[str]", value: object) -> None:
    if http_parts(value) is None:
        raise ConfigurationError(
            f"Callbacks.url: {_shown(value)} given, it must look like https://app.example/flux2/callback/"
        )


def _shown(value: object) -> str:
    """What was given for an address, where nothing private can be in it."""
    if not isinstance(value, str):
        return type(value).__name__
    return "an address with a user name or a query" if set("@?#") & set(value) else repr(value)


def _secret_text(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip() or _SURROGATES.search(value)):
        raise ConfigurationError(
            f"{type(instance).__name__}.{attribute.name}: it must be text that is not blank and can be written as "
            "UTF-8, or None"
        )


@made_without_frames
@showable
@attrs.frozen(field_transformer=by_type)
class Callbacks:
    """Where the service tells that a task is finished.

    Example:
        flux = Flux2Session(callbacks=Callbacks("https://app.example/flux2/callback/"))

    Attributes:
        url: The public address of the receiver (see `flux2_async.receivers`); with a mount it ends in a slash. Every
            task gets it with the name of its submission and a signature.
        secret: Signs the addresses; the same in all processes that receive for each other. None: the environment
            variable APIKLEY_CALLBACK_SECRET when the session is opened, and without that a random one per session.
        hmac_key: The key of the service's own signature (X-Webhook-Signature), when the account has one; then a
            callback without it is refused. None: not checked.
        confirm: Read the record before a task is settled, since the service does not sign what the body says. False:
            settle from the body.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    url: str = attrs.field(validator=_check_callback_url, repr=lambda url: repr(shown_address(url)))
    secret: str | None = attrs.field(default=None, validator=_secret_text, kw_only=True, repr=False)
    hmac_key: str | None = attrs.field(default=None, validator=_secret_text, kw_only=True, repr=False)
    confirm: bool = attrs.field(default=True, kw_only=True)
