"""What the commands can be told, and what the words on the command line become: a `UsageError` if nothing else."""

import ipaddress
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

import attrs
from cyclopts import Parameter

from flux2_async.cli.screen import UsageError
from flux2_async.errors import ConfigurationError
from flux2_async.models import RateLimit
from flux2_async.models import service as services
from flux2_async.models.requests import RATIOS, RESOLUTIONS, TIERS

RATE_LIMIT: Final = "20/10"
FOLDER: Final = Path("results")
# Play money of the emulated service: nobody should run out of it.
CREDITS: Final = 1_000_000.0
TITLE: Final = "Flux-2 batch"
# Apikley's advice is to stop polling after 10 to 15 minutes.
TIMEOUT: Final = 900.0

EXTENSIONS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a file may be asked to be, by the end of its name, in the words of Pillow."""

SERVICE: Final = "FLUX2_SERVICE"
COORDINATION: Final = "FLUX2_COORDINATION"
SERVICES: Final[dict[str, services.Service | None]] = {"": None, "apikley": None, "kie": services.KIE}
ACCOUNT: Final = "https://app.apikley.ru"
NO_KEY: Final = (
    "no API key: set it with `export APIKLEY_API_KEY=...` (keys are made at https://app.apikley.ru/keys), "
    "or without an "
)
EMULATE: Final = "account add --emulate, which uses the embedded emulator"
EMULATOR: Final = "account start `flux2 emulator` in another terminal and set the variables that it prints"


def told(text: str) -> Parameter:
    """Give an option its words of help."""
    return Parameter(help=text)


def flag(text: str) -> Parameter:
    """Likewise, for one without a negation."""
    return Parameter(negative="", help=text)


RateLimitText: TypeAlias = Annotated[
    str, told("At most N new tasks in any SECONDS seconds, written N/SECONDS; none: no limit on this side.")
]
Json: TypeAlias = Annotated[bool, flag("One JSON document on stdout, everything else on stderr.")]
Output: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--output", "-o"],
        help="The file to write, .png, .jpg or .webp (converted where needed), or an existing folder. "
        "Without it: TASK_ID-1.EXT in this folder.",
    ),
]
Timeout: TypeAlias = Annotated[float, told("Seconds to wait for the picture; the task itself goes on at the service.")]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Shape:
    """How the picture is to be."""

    aspect_ratio: Annotated[
        str | None,
        told(f"{', '.join(RATIOS)}, or with pictures auto. Without it: auto with pictures (in Python 1:1), else 1:1."),
    ] = None
    resolution: Annotated[str, told(f"{' or '.join(RESOLUTIONS)}.")] = "1K"
    tier: Annotated[str, told(f"{' or '.join(TIERS)}.")] = "flex"

    def fields(self, aspect_ratio: str) -> dict[str, Any]:
        """Give the fields of a request, which checks them; with this ratio where none was said."""
        ratio = aspect_ratio if self.aspect_ratio is None else self.aspect_ratio
        return {"aspect_ratio": ratio, "resolution": self.resolution, "tier": self.tier}


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Service:
    """Which service, and how fast."""

    emulate: Annotated[bool, flag("Use the embedded emulator: no account, no charge, no real picture.")] = False
    rate_limit: RateLimitText = RATE_LIMIT
    coordination: Annotated[
        str | None,
        told(
            "Where processes of the account share its limit: host (this one's) or host:FILE, redis://... or "
            f"postgresql://...; with a password by the variable {COORDINATION}."
        ),
    ] = None

    def check(self) -> None:
        """Look whether the limit makes sense, and whether there is a key where one is needed."""
        parse_rate_limit(self.rate_limit)
        if not self.emulate:
            check_key(EMULATE)


def check_key(instead: str = EMULATOR) -> None:
    """Look whether the environment has a key; whether it is a good one is judged by the session."""
    variable = key_variable()
    if not os.environ.get(variable, "").strip():
        no_key = NO_KEY if variable == services.APIKLEY.key_variable else f"no API key: set {variable}, or without an "
        raise UsageError(no_key + instead)


def key_variable() -> str:
    """Give the name of the environment variable of the key."""
    return (named_service() or services.APIKLEY).key_variable or ""


def named_service() -> services.Service | None:
    """Give the service that FLUX2_SERVICE names; None: Apikley, at the addresses of the environment."""
    name = os.environ.get(SERVICE, "").strip().lower()
    if name not in SERVICES:
        raise UsageError(f"{SERVICE}: {name!r} given, allowed are {', '.join(filter(None, SERVICES))}")
    return SERVICES[name]


def log_address(*, emulated: bool = False) -> str:
    """Give where the account's tasks can be looked at, of an emulator of this machine its ledger; empty: not known."""
    if named_service() is services.KIE:
        return "https://kie.ai/logs"
    address = "" if emulated else os.environ.get("APIKLEY_BASE_URL", "").strip() or ACCOUNT
    if address == ACCOUNT:
        return address
    return f"{address.rstrip('/')}/ledger" if is_loopback(urlsplit(address).hostname or "") else ""


def task_log(*, emulated: bool = False) -> str:
    """Name the account's task log, with its address where that is known."""
    address = log_address(emulated=emulated)
    return f"the task log of your account ({address})" if address else "the task log of your account"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_rate_limit(text: str, option: str = "--rate-limit") -> RateLimit | None:
    """Read N/SECONDS, or `none`, as an option has it."""
    if text.strip().lower() == "none":
        return None
    # The digits of other alphabets are digits to Python, and a number of a thousand digits is no rate.
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*s?\s*", text)
    try:
        if match:
            return RateLimit(int(match[1]), float(match[2]))
    except ConfigurationError:
        pass
    raise UsageError(
        f"{option}: {text!r} given, it must look like {RATE_LIMIT} (20 new tasks in any 10 seconds), or none"
    )


def check_timeout(seconds: float) -> float:
    """Give the seconds back, unless they are no waiting time."""
    if math.isnan(seconds) or seconds < 0:
        raise UsageError(f"--timeout: {seconds} given, it must be a number of seconds of 0 or more")
    return seconds


@attrs.frozen
class Target:
    """Where the pictures of one task go: an existing folder, and the file asked for, or None for `TASK_ID-N.EXT`."""

    folder: Path
    name: str | None = None
    # For `-o`.
    given: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Target":
        """Check what was given for `-o` before anything is sent."""
        path = Path(text) if text else Path()
        if text == "":
            raise UsageError("--output: an empty name given, it must be a file such as out.png, or an existing folder")
        target = cls(path, None, text) if path.is_dir() else cls(path.parent, path.name, text)
        # What ends in a slash is meant as a folder, which a Path does not show.
        folder = path if str(text).endswith(("/", os.sep)) else target.folder
        if not folder.is_dir():
            raise UsageError(
                f"--output: there is no folder {str(folder)!r}; make it first, or name one that exists or a file such "
                "as out.png"
            )
        if target.name is not None and path.suffix.lower() not in EXTENSIONS:
            kinds = ", ".join(EXTENSIONS)
            raise UsageError(f"--output: {text!r} given; a file must end in one of {kinds}, and a folder must exist")
        check_writable(target.folder, "--output: the folder {!r} cannot be written ({}); nothing was sent")
        return target


def check_writable(folder: Path, told: str, *, make: bool = False) -> None:
    """Find out by writing; root has every permission, and a read-only disk none. `told` says which and why not."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except FileExistsError as error:
        there = Path(error.filename)
        reason: object = f"{there} is {'no folder' if there.exists() else 'a link that leads nowhere'}"
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
    raise UsageError(told.format(str(folder), reason))
