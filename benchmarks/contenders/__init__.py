"""Who is compared, each behind the same three methods and with its public settings only."""

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

import attrs

__all__ = ["CONTENDERS", "FLOOR", "FRESH", "OBSERVED", "OURS", "SPED", "Contender", "Setting", "available", "entered"]


@attrs.frozen
class Setting:
    """Where the service is, and what a contender is told about it.

    Attributes:
        url: The service's address.
        secure_url: The same with TLS.
        certificate: The authority behind it.
        limit: Creations per period that the contender believes in, 0 for none.
        period: Seconds.
        interval: Seconds between two looks, for those who let one choose.
        price: For this library: seconds of lag that a look is worth. None: it looks after each `interval`, like others.
        images: Reference pictures of a request, given by their addresses; 0 for text-to-image. Clients of other
            services have one kind of request.
        secure: For this library: whether over TLS.
        recorded: Where it is observed: which part of the traces is recorded; 0: no spans are made.
    """

    url: str
    secure_url: str = ""
    certificate: str = ""
    limit: int = 0
    period: float = 10.0
    interval: float = 0.1
    price: float | None = None
    images: int = 2
    secure: bool = False
    recorded: float = 1.0

    def addresses(self) -> list[str]:
        """The addresses of a request's pictures."""
        return [f"https://files.example/reference-{number}.png" for number in range(self.images)]


class Contender(Protocol):
    """A client of the service."""

    async def create(self, number: int) -> Any:
        """Have a task made; give what the client gives for it."""
        ...

    async def finish(self, handle: Any) -> str:
        """Wait until it is finished, as the client does it, and give the picture's address."""
        ...


OURS: Final = "flux2_async"
SPED: Final = "flux2_async[speedups]"
OBSERVED: Final = "flux2_async[otel]"
"""The library without speedups, observed by a `Telemetry` whose spans and metrics are recorded and not sent."""
FLOOR: Final = "aiohttp by hand"
FRESH: Final = "by hand, fresh connection"
"""The floor that sends each createTask over a connection which has carried no request, as the library does."""

# The module here, and the package it needs.
CONTENDERS: Final = {
    FLOOR: ("floor", "aiohttp"),
    FRESH: ("fresh", "aiohttp"),
    OURS: ("ours", "flux2_async"),
    SPED: ("ours", "orjson"),
    OBSERVED: ("observed", "opentelemetry.sdk"),
    "aiolimiter script": ("script", "aiolimiter"),
    "fal-client": ("fal", "fal_client"),
    "replicate": ("replicates", "replicate"),
    "runwayml": ("runway", "runwayml"),
    "openai": ("openais", "openai"),
    "openai on aiohttp": ("openais_on_aiohttp", "openai"),
}


def available() -> list[str]:
    """The contenders that are installed."""
    return [name for name, (_, package) in CONTENDERS.items() if _installed(package)]


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        # What it would be a part of.
        return False


def entered(name: str, setting: Setting) -> AbstractAsyncContextManager[Contender]:
    """Give a contender, ready inside `async with`."""
    if name in (OURS, OBSERVED):
        # Most install it without the extra `speedups`.
        sys.modules.setdefault("orjson", None)  # type: ignore[arg-type]  # what is None there is not found
    module = import_module(f"benchmarks.contenders.{CONTENDERS[name][0]}")
    make: Callable[[Setting], AbstractAsyncContextManager[Contender]] = module.entered
    return make(setting)
