"""Which servers, users and addresses a coordination takes, and that it says at `open` what can never work."""

import asyncio
import inspect
import logging
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from emulated import REQUEST, error_of, free_port, logged, session_for, until
from opening import SECRET, assert_hopeless, opened
from redis_server import RedisServer

from flux2_async import ConfigurationError, CoordinationError, RateLimit
from flux2_async.coordination import RedisCoordination
from flux2_async.coordination.contract import Terms
from flux2_async.coordination.coordinator import Coordinator
from flux2_async.coordination.redis import refusals
from flux2_async.coordination.redis import store as redis_store
from flux2_async.coordination.redis.refusals import check_server
from flux2_async.emulator import Emulator, Script

pytestmark = pytest.mark.real_time

# The lines of the docstring that stand apart.
RIGHTS = " ".join(re.findall(r"^ {4,}([~+].*)$", inspect.getdoc(RedisCoordination) or "", re.MULTILINE)).split()
RIGHTS_OF_DATABASES = "+select"
PERIOD = 0.5


async def opened_at(url: str) -> Exception | None:
    return await opened(RedisCoordination(url, on_failure="fail", timeout=10.0))


# --- Rights ---


def give(server: RedisServer, *rights: str) -> str:
    """Let a user have these rights and nothing else; give its address."""
    with server.client() as client:
        client.execute_command("ACL", "DELUSER", "app")
        client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "resetchannels", "-@all", *rights)
    return f"redis://app:{SECRET}@127.0.0.1:{server.port}"


async def test_documented_rights_suffice(caplog: pytest.LogCaptureFixture) -> None:
    """A user with the rights that the docstring names, and no other, opens, submits, is heard and closes."""
    caplog.set_level(logging.DEBUG, "flux2_async")
    with RedisServer() as server:
        assert await opened_at(give(server, *RIGHTS)) is None
        assert await opened_at(f"{give(server, *RIGHTS, RIGHTS_OF_DATABASES)}/3") is None
        with server.client() as client:
            denied = client.acl_log()

    # What the redis package says of itself is its own affair.
    assert [entry for entry in denied if entry["object"] not in ("client|setinfo", "client|setname")] == []
    assert logged(caplog, level=logging.DEBUG + 1) == []


async def test_every_documented_right_is_needed() -> None:
    """Without any one of them `open` says at once which one is missing."""
    assert len(RIGHTS) == 13
    with RedisServer() as server:
        for left_out in RIGHTS:
            error = await opened_at(give(server, *(right for right in RIGHTS if right != left_out)))
            assert error is not None, left_out
            # Of what a script does the server does not say which command it was.
            assert_hopeless(error, rf"lacks ({re.escape(left_out)};|a right: to a command within scripts)")


# --- Servers ---


async def test_node_of_a_cluster_is_refused() -> None:
    """A node that would take everything is one of a cluster all the same, and so is one that serves no slot."""
    # The port of its bus is 10,000 above its own unless told, and there may be no such port.
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        assert_hopeless(await opened_at(server.url), "clusters are not supported")
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        assert_hopeless(await opened_at(server.url), "clusters are not supported")


@pytest.mark.parametrize("options", [(), ("--replica-read-only", "no"), ("--replica-serve-stale-data", "no")])
async def test_replica_is_refused(options: tuple[str, ...]) -> None:
    """What a replica takes, if it does, nobody else sees."""
    with RedisServer() as server, RedisServer("--replicaof", "127.0.0.1", str(server.port), *options) as replica:
        assert_hopeless(
            await opened_at(replica.url), "this is a replica; give the address of the server that takes writes"
        )


@pytest.mark.parametrize("database", ["", "/1"])
async def test_port_of_a_sentinel_is_refused(tmp_path: Path, database: str) -> None:
    """A Sentinel answers as a server does, and holds no keys."""
    with RedisServer() as server, sentinel(server, tmp_path) as port:
        assert await opened_at(server.url) is None
        assert_hopeless(await opened_at(f"redis://127.0.0.1:{port}{database}"), "Sentinel")


@contextmanager
def sentinel(server: RedisServer, folder: Path) -> Iterator[int]:
    port, settings = free_port(), folder / "sentinel.conf"
    settings.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
    with subprocess.Popen(  # noqa: S603  our own words
        [server.program, str(settings), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for_port(port)
            yield port
        finally:
            process.kill()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nothing listens")


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        (("--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"), "volatile-ttl"),
        (("--maxmemory", "100mb"), ""),
        # It is never full.
        (("--maxmemory-policy", "allkeys-lru"), ""),
    ],
)
async def test_server_that_drops_keys_is_warned_of(
    options: tuple[str, ...], policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever opens sessions is told once which setting lets paid tasks be forgotten, and what to set."""
    with RedisServer(*options) as server:
        assert await opened_at(server.url) is None
        assert await opened_at(server.url) is None

    told = logged(caplog, level=logging.WARNING)
    assert len(told) == (1 if policy else 0)
    assert all(f"(maxmemory-policy {policy})" in each and "set maxmemory-policy to noeviction" in each for each in told)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("redis://127.0.0.1:{port}", "the user or the password"),
        ("redis://:wrong@127.0.0.1:{port}", "the user or the password"),
        (f"redis://nobody:{SECRET}@127.0.0.1:{{port}}", "the user or the password"),
        (f"redis://:{SECRET}@127.0.0.1:{{port}}/99", "no database of the number"),
    ],
)
async def test_wrong_login_and_database_are_told(address: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """A password that is missing or wrong, a user and a database that do not exist; nothing shows a password."""
    caplog.set_level(logging.DEBUG)
    with RedisServer("--requirepass", SECRET) as server:
        url = address.format(port=server.port)
        assert_hopeless(await opened_at(url), says)
        assert SECRET not in f"{RedisCoordination(url)!r} {caplog.text}"


async def test_password_that_nobody_asked_for_is_told() -> None:
    """A server without passwords refuses who gives one."""
    with RedisServer() as server:
        assert_hopeless(await opened_at(f"redis://:{SECRET}@127.0.0.1:{server.port}"), "the user or the password")


@pytest.mark.parametrize("command", ["EVALSHA", "PUBLISH"])
async def test_command_that_was_taken_away_is_told(command: str) -> None:
    """Some who rent out servers rename or remove commands."""
    with RedisServer("--rename-command", command, "") as server:
        assert_hopeless(await opened_at(server.url), "does not know a command|rights")


async def test_full_server_is_an_outage() -> None:
    """What will be over some day is no matter of settings."""
    with RedisServer() as server:
        with server.client() as client:
            client.config_set("maxmemory", 1)
            client.config_set("maxmemory-policy", "noeviction")
        error = await opened_at(server.url)

    assert isinstance(error, CoordinationError)


@pytest.mark.parametrize("lacking", ["+subscribe", "+del", "&flux2:*"])
async def test_server_that_comes_late_is_checked_as_well(lacking: str, caplog: pytest.LogCaptureFixture) -> None:
    """What `open` would have refused is told when the server is there, and the session joins when that is mended."""
    server = RedisServer()
    coordination = RedisCoordination(f"redis://app:{SECRET}@127.0.0.1:{server.port}")
    async with Emulator(Script(render=False)) as emulator, session_for(emulator, coordination=coordination) as flux:
        assert "redis cannot be reached" in caplog.text
        with server:
            give(server, *(right for right in RIGHTS if right != lacking))
            await until(lambda: "see RedisCoordination for the rights that are needed" in caplog.text)
            with pytest.raises(CoordinationError):
                await flux.submit(REQUEST, key="late")
            give(server, *RIGHTS)
            async with asyncio.timeout(20.0):
                while not emulator.ledger.accepted:
                    with suppress(CoordinationError):
                        await flux.submit(REQUEST, key="late")
                    await asyncio.sleep(0.05)


# --- TLS ---


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ca, stranger = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path


@contextmanager
def tls_server(files: Path) -> Iterator[int]:
    port = free_port()
    options = {
        "tls-port": str(port),
        "tls-cert-file": "cert.pem",
        "tls-key-file": "key.pem",
        "tls-ca-cert-file": "ca.pem",
    }
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name}", str(files / value) if value.endswith(".pem") else value)
    ]
    with RedisServer(*words, "--tls-auth-clients", "no"):
        wait_for_port(port)
        yield port


async def test_tls_of_a_trusted_server_works(files: Path) -> None:
    """`rediss://` and Valkey's own word for it."""
    with tls_server(files) as port:
        for scheme in ("rediss", "valkeys"):
            assert await opened_at(f"{scheme}://localhost:{port}?ssl_ca_certs={files / 'ca.pem'}") is None


@pytest.mark.parametrize("trusted", ["", "?ssl_ca_certs={}/stranger.pem"])
async def test_certificate_that_is_not_trusted_is_told(files: Path, trusted: str) -> None:
    """It will not be trusted tomorrow either."""
    with tls_server(files) as port:
        error = await opened_at(f"rediss://localhost:{port}{trusted.format(files)}")

    assert_hopeless(error, "SSLCertVerificationError")


# --- Addresses ---


ADDRESSES: dict[str, Callable[[int, Path], str]] = {
    "plain": lambda port, _: f"redis://127.0.0.1:{port}",
    "white space": lambda port, _: f" redis://127.0.0.1:{port}/0\n",
    "valkey": lambda port, _: f"valkey://localhost:{port}/2",
    "query": lambda port, _: f"redis://127.0.0.1:{port}?db=2&client_name=flux2&health_check_interval=5",
    "what we rely on": lambda port, _: f"redis://127.0.0.1:{port}?protocol=3&decode_responses=0&socket_timeout=9",
    "unix": lambda _, path: f"unix://{path}",
    "unix with database": lambda _, path: f"unix://{path}?db=1",
    "unix with password": lambda _, path: f"unix://app:{SECRET}@{path}?db=1",
}


@pytest.mark.parametrize("form", ADDRESSES)
async def test_forms_of_an_address_work(form: str, tmp_path: Path) -> None:
    """Everything that the redis package documents for one server, sockets of this host included."""
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as server:
        give(server, *RIGHTS, RIGHTS_OF_DATABASES)
        assert await opened_at(ADDRESSES[form](server.port, path)) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://host/name",
        "redis://host/1/2",
        "redis://host?db=first",
        "redis://host?no_such_option=1",
        "unix://",
        "unix:///path?host=other",
        "redis+sentinel://host/name",
        "rediss://host?ssl_ca_certs=/no/such/file",
        "",
        b"redis://host",
    ],
)
async def test_addresses_that_never_work_are_told_when_made(url: str) -> None:
    """Nothing is left for the first connection to find, and no word of it is taken for another."""
    with pytest.raises(ConfigurationError, match="url: it must look like") as caught:
        RedisCoordination(url)

    assert caught.value.__cause__ is None


# --- Other versions ---


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def test_old_server_is_told_at_once(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old ends `open`."""
    monkeypatch.setattr(refusals, "OLDEST_VERSION", (99, 0))
    async with Emulator(Script(render=False)) as emulator:
        error = await error_of(session_for(emulator, coordination=RedisCoordination(server.url)).open())

    assert isinstance(error, ConfigurationError)
    assert "is too old; 99.0 or newer" in str(error)


@pytest.mark.parametrize("ago", [10.0, 600.0], ids=["in use", "long ago"])
async def test_processes_of_another_version_are_not_joined_in_silence(server: RedisServer, ago: float) -> None:
    """While others keep their state in another form `open` says what to do; theirs is neither read nor changed."""
    coordinator = Coordinator(RedisCoordination(server.url), f"{ago}", Terms(RateLimit(10, PERIOD), 70.0))
    name = f"flux2:{{{ago}}}:book"
    told = None
    with server.client() as client:
        # For how long the version before kept it after the last question, with the limit that it had.
        client.set(name, "of another version", px=round(1000 * (3600 + 70 + 4 * PERIOD - ago)))
        try:
            await coordinator.open(print)
        except ConfigurationError as error:
            told = str(error)
        assert client.get(name) == "of another version"
    await coordinator.aclose()

    assert (told is not None) == (ago < 60.0)
    assert told is None or "run one version in all processes" in told


async def test_process_of_another_version_that_comes_later_is_warned_of(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot know of those that keep their state in a newer form; one of these says it in the log, once."""
    monkeypatch.setattr(redis_store, "PING_EVERY", 0.05)
    coordinator = Coordinator(RedisCoordination(server.url), "later", Terms(RateLimit(10, PERIOD), 70.0))
    await coordinator.open(print)
    with server.client() as client:
        client.set("flux2:{later}:book", "of another version", ex=3700)
        await until(lambda: logged(caplog))
        await asyncio.sleep(0.3)
    await coordinator.aclose()

    assert len(logged(caplog)) == 1
    assert "run one version in all processes" in caplog.text


@pytest.mark.parametrize(("version", "fits"), [("5.0.14", False), ("6.0.0", True), ("7.2.4", True), ("10.0", True)])
def test_old_versions_are_refused(version: str, *, fits: bool) -> None:
    """A server before 6.0 is told apart; Valkey names itself as a Redis of 7.2."""
    if fits:
        check_server({"redis_version": version})
    else:
        with pytest.raises(ConfigurationError, match=r"5\.0\.14 is too old"):
            check_server({"redis_version": version})
