"""What the receivers of callbacks need to know."""

import os
import secrets
from typing import Final

import attrs

from flux2_async._shown.text import shown_address
from flux2_async.errors import ConfigurationError
from flux2_async.models import Callbacks
from flux2_async.webhooks import signed_url

VARIABLE: Final = "APIKLEY_CALLBACK_SECRET"


@attrs.define(eq=False)
class CallbackSettings:
    """What the receivers need to know.

    Attributes:
        url: The public address, without signature.
        secret: Signs addresses.
        hmac_key: Checks the service's own signature, or None.
        confirm: Whether a record is read before a task is settled.
        lasting: Whether the secret is not a random one, so that the addresses are good beyond this session.
    """

    url: str
    secret: bytes = attrs.field(repr=False)
    hmac_key: str | None = attrs.field(repr=False)
    confirm: bool
    lasting: bool = True

    @property
    def shown_url(self) -> str:
        """The address without what may be private in it."""
        return shown_address(self.url)

    @classmethod
    def of(cls, callbacks: object) -> "CallbackSettings":
        """Fill up what the user left open in `Callbacks`; anything else is a `ConfigurationError`."""
        if not isinstance(callbacks, Callbacks):
            raise ConfigurationError(f"callbacks: {type(callbacks).__name__} given, it must be Callbacks(...) or None")
        secret = callbacks.secret.encode() if callbacks.secret is not None else secrets.token_bytes(32)
        settings = cls(callbacks.url, secret, callbacks.hmac_key, callbacks.confirm, callbacks.secret is not None)
        # An address that cannot be signed is told when the session is made.
        signed_url(settings.url, "check", settings.secret)
        return settings

    def read_environment(self, *, needed: bool) -> None:
        """Take the secret of the environment where none was given; `needed`: processes share it.

        Raises:
            ConfigurationError: There is none, and it is needed.
        """
        if not self.lasting and (secret := environment_secret()):
            self.secret, self.lasting = os.fsencode(secret), True
        if needed and not self.lasting:
            raise ConfigurationError(
                "callbacks: with coordination they need a secret, the same in all processes, which receive callbacks "
                f"for each other: set the environment variable {VARIABLE}, or give Callbacks(url, secret=...)"
            )


def environment_secret() -> str:
    """Give the secret that the environment has; empty for none."""
    return os.environ.get(VARIABLE, "").strip()
