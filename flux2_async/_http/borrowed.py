"""The caller's own aiohttp session: what it may bring along, and how createTask goes the same way on its own."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from flux2_async.errors import ConfigurationError

ConnectorFactory = Callable[[], aiohttp.BaseConnector]

# A borrowed session's own headers reach every host, so only those that tell nobody anything may be there.
HARMLESS_HEADERS: Final = frozenset({"user-agent", "accept", "accept-language", "accept-encoding", "cache-control"})

# Of a connector's settings. The others say how many connections there are, and how long idle ones live.
ROUTE: Final = ("ssl", "family", "resolver", "use_dns_cache", "happy_eyeballs_delay", "interleave", "socket_factory")

# What a connector of another kind may do its own way without leading its connections another way.
HARMLESS_METHODS: Final = frozenset({"__init__", "__del__", "__aenter__", "__aexit__", "__repr__", "close", "_close"})


def check_borrowed(http: aiohttp.ClientSession, connector: ConnectorFactory | None) -> None:
    """Refuse a session that shows something of its own to hosts of pictures, that remembers, or cannot be imitated.

    Raises:
        ConfigurationError: It would; the text says what to change.
    """
    if http.closed:
        raise ConfigurationError("http: the aiohttp.ClientSession is closed; pass an open one or None")
    # What has no such attribute, as a later aiohttp may, is taken for one of this loop.
    if getattr(http, "_loop", None) not in (None, asyncio.get_running_loop()):
        raise ConfigurationError(
            "http: the aiohttp.ClientSession was made in another event loop, in which alone it works; make it in "
            "the one in which this session is opened"
        )
    # `auth` is deprecated and will be gone with aiohttp 4.
    if getattr(http, "auth", None) is not None:
        raise ConfigurationError("http: its `auth` would reach hosts of pictures; pass a session without it")
    for name in http.headers:
        if name.lower() not in HARMLESS_HEADERS:
            raise ConfigurationError(f"http: its default header {name!r} would reach hosts of pictures; remove it")
    if any("cache" in kind.__name__.lower() for kind in type(http).__mro__):
        raise ConfigurationError(
            f"http: a {type(http).__name__} remembers answers, and a poll that is answered from memory never sees a "
            "task finish; pass a plain aiohttp.ClientSession"
        )
    if connector is None and (method := _own_way(http.connector)):
        raise ConfigurationError(
            f"http: createTask needs connections of its own, which cannot be made like those of a "
            f"{type(http.connector).__name__}, whose {method} is its own; pass as well connector=, a function that "
            "makes such a connector, or a session with a plain TCPConnector (and proxy=... or trust_env=True)"
        )


def _own_way(connector: aiohttp.BaseConnector | None) -> str | None:
    """Name the method by which a connector leads its connections another way than a TCPConnector, or None."""
    if connector is None:
        return None
    # What a tracing tool wraps around a connector passes for it, and leads nothing.
    kind = connector.__class__
    if not issubclass(kind, aiohttp.TCPConnector):
        return "`connect`"
    own = kind.__mro__[: kind.__mro__.index(aiohttp.TCPConnector)]
    methods = {name for each in own for name, value in vars(each).items() if callable(value)}
    changed = sorted((methods & set(dir(aiohttp.TCPConnector))) - HARMLESS_METHODS - set(dir(object)))
    return f"`{changed[0]}`" if changed else None


def make_connector(http: aiohttp.ClientSession | None, connector: ConnectorFactory | None) -> aiohttp.BaseConnector:
    """Make what makes the connections of createTask, on the same way out as the borrowed session's.

    Raises:
        ConfigurationError: The factory gave something else than a new connector.
    """
    if connector is None:
        route = {} if http is None else route_of(http.connector)
        return aiohttp.TCPConnector(limit=0, force_close=True, **route)
    made: object = connector()
    if not isinstance(made, aiohttp.BaseConnector) or made.closed or (http is not None and made is http.connector):
        raise ConfigurationError(
            f"connector: the function gave {type(made).__name__}, it must make a new aiohttp connector at each call"
        )
    return made


def proxy_settings(http: aiohttp.ClientSession | None) -> dict[str, Any]:
    """Give the options of a session that goes through the same proxies as the borrowed one."""
    if http is None:
        return {}
    proxies = {name: getattr(http, f"_default_{name}", None) for name in ("proxy", "proxy_auth")}
    return {"trust_env": http.trust_env} | {name: value for name, value in proxies.items() if value is not None}


def route_of(connector: aiohttp.BaseConnector | None) -> dict[str, Any]:
    """Give what decides where the connections of a connector go, from where and how."""
    # aiohttp offers no public way to ask for these; what is missing takes aiohttp's default.
    route = {name: getattr(connector, f"_{name}") for name in ROUTE if hasattr(connector, f"_{name}")}
    # One that the connector made for itself it also closes.
    if getattr(connector, "_resolver_owner", True):
        route.pop("resolver", None)
    if local := getattr(connector, "_local_addr_infos", None):
        route["local_addr"] = local[0][-1]
    return route
