"""The package's version; the build reads it here, since asking the installed metadata reads a file for each session."""

from typing import Final

VERSION: Final = "0.2.0"
USER_AGENT: Final = f"flux2-async/{VERSION}"
