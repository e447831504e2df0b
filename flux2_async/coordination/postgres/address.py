"""The address of a Postgres, checked."""

import re
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flux2_async.errors import ConfigurationError

_BAD_DSN: Final = (
    "dsn: it must look like postgresql://user:password@host:5432/database or host=... dbname=... user=..., with "
    "options of libpq only; what is no letter or digit in user and password is written as %40 and so on in an address"
)


def dsn_of(dsn: object) -> str:
    """Give what libpq takes; a user's own options stand, but not against what we rely on.

    Raises:
        ConfigurationError: It cannot be used.
    """
    if not isinstance(dsn, str) or not dsn.strip():
        raise ConfigurationError(_BAD_DSN)
    try:
        options: dict[str, Any] = {**conninfo_to_dict(re.sub(r"^(postgres(ql)?)\+\w+://", r"\1://", dsn.strip()))}
    except (psycopg.Error, UnicodeEncodeError):
        raise ConfigurationError(_BAD_DSN) from None
    # An address with a password that is not escaped ends too early, and psycopg would log the rest of it.
    if "@" in str(options.get("host", "")) or not re.fullmatch(r"[0-9,]*", str(options.get("port", ""))):
        raise ConfigurationError(_BAD_DSN)
    options.setdefault("application_name", "flux2_async")
    return make_conninfo(**options | {"client_encoding": "utf8"})
