"""Keys out of texts that are shown. Pure."""

import re
from typing import Final

import attrs

# Characters; what is shorter is no secret.
SECRET_LENGTH: Final = 12


@attrs.frozen
class Redactor:
    """Takes a key out of texts that are shown; data that is still to be read is left alone.

    A short one, which test doubles have, is taken out as a word only: it is no secret, and part of many words.
    """

    _key: str = attrs.field(default="", repr=False)

    def __call__(self, text: str) -> str:
        """The text without the key."""
        if not self._key or self._key not in text:
            return text
        if len(self._key) >= SECRET_LENGTH:
            return text.replace(self._key, "<redacted>")
        return re.sub(rf"(?<![\w-]){re.escape(self._key)}(?![\w-])", "<redacted>", text)
