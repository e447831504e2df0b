"""`flux2_async.blocking`: the session for code without an event loop, in real time and over real sockets."""

import asyncio
import inspect
import pydoc
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any, assert_type, cast, get_args, get_origin, get_type_hints

import aiohttp
import pytest
from documents import PACKAGE, blocks, compiled
from emulated import session_for

from flux2_async import (
    Completion,
    ConfigurationError,
    Flux2Session,
    ImageResult,
    ImageTask,
    InvalidRequestError,
    Polling,
    RateLimit,
    Request,
    SessionClosedError,
    SubmissionHandle,
    SubmissionState,
    SubmissionWithdrawnError,
    TaskRecord,
    TaskState,
    TaskTimeoutError,
    TextToImage,
)
from flux2_async.blocking import (
    BlockingCompletion,
    BlockingHandle,
    BlockingIterator,
    BlockingSession,
    BlockingTask,
    EnqueueOptions,
    SubmitOptions,
)
from flux2_async.blocking.mirror import Attribute
from flux2_async.emulator import Limit, Plan, Script
from flux2_async.testing import RunningEmulator

pytestmark = pytest.mark.flux2_script(Script(plans=Plan(duration=0.3), render=False))

KETTLE = TextToImage("a red kettle")
LOOKS = Polling(interval=0.05)


@pytest.fixture
def flux(flux2_emulator: RunningEmulator) -> Iterator[BlockingSession]:
    with BlockingSession(polling=LOOKS) as flux:
        yield flux


def kettles(count: int) -> Iterator[TextToImage]:
    return (TextToImage(f"kettle {number}") for number in range(count))


# --- the mirror


MIRRORS: list[tuple[type, type]] = [
    (Flux2Session, BlockingSession),
    (ImageTask, BlockingTask),
    (SubmissionHandle, BlockingHandle),
    (Completion, BlockingCompletion),
]
# What asynchronous annotations become.
PLAIN = [
    (r" \| collections\.abc\.AsyncIterable\[[^]]*\]", ""),
    (
        r"collections\.abc\.Callable\[\[str\], collections\.abc\.Awaitable\[object\]\]",
        "collections.abc.Callable[[str], object]",
    ),
    (r"collections\.abc\.AsyncGenerator\[(.*), None\]", r"flux2_async.blocking.mirror.BlockingIterator[\1]"),
    (r"flux2_async\.tasks\.handle\.ImageTask", "flux2_async.blocking.mirror.BlockingTask"),
    (r"flux2_async\.session\.enqueued\.SubmissionHandle", "flux2_async.blocking.mirror.BlockingHandle"),
    (r"flux2_async\.tasks\.handle\.Completion", "flux2_async.blocking.mirror.BlockingCompletion"),
]
RENAMED = {"aclose": "close"}
OPTIONS = {"submit": SubmitOptions, "enqueue": EnqueueOptions}


def shown(function: Callable[..., Any]) -> list[tuple[str, ...]]:
    """Parameters with kind, default and annotation, and what is returned."""
    hints = get_type_hints(function, {**vars(sys.modules[function.__module__]), **_names()})
    rows = [
        (name, str(each.kind), repr(each.default), inspect.formatannotation(hints.get(name, Any)))
        for name, each in inspect.signature(function).parameters.items()
    ]
    return [*rows, ("return", inspect.formatannotation(hints.get("return", Any)))]


def _names() -> dict[str, Any]:
    """What stands in annotations alone."""
    import flux2_async  # noqa: PLC0415  here only
    from flux2_async.coordination.store import Coordination  # noqa: PLC0415  likewise
    from flux2_async.models.image_sources import UploadSource  # noqa: PLC0415  likewise
    from flux2_async.session.as_completed import Requests  # noqa: PLC0415  likewise
    from flux2_async.session.callback_settings import CallbackSettings  # noqa: PLC0415  likewise
    from flux2_async.session.submission import OnSend  # noqa: PLC0415  likewise
    from flux2_async.webhooks import Callback  # noqa: PLC0415  likewise

    names = {name: getattr(flux2_async, name) for name in flux2_async.__all__}
    kinds = {"Coordination": Coordination, "CallbackSettings": CallbackSettings, "Callback": Callback, "OnSend": OnSend}
    return names | kinds | {"UploadSource": UploadSource, "Requests": Requests}


def blocking(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    def plain(word: str) -> str:
        for found, instead in PLAIN:
            word = re.sub(found, instead, word)
        return word

    return [tuple(map(plain, row)) for row in rows]


@pytest.mark.parametrize(("kind", "mirror"), MIRRORS, ids=lambda kind: kind.__name__)
def test_nothing_is_missing_and_nothing_is_different(kind: type, mirror: type) -> None:
    """Each public method has the same parameters and gives the same, nothing to be awaited, and has a docstring."""
    names = {name: RENAMED.get(name, name) for name in dir(kind) if not name.startswith("_")}
    # Awaiting the handle itself is asking it for its result.
    extra = {"result"} if mirror is BlockingHandle else set()

    assert {name for name in dir(mirror) if not name.startswith("_")} == {*names.values()} | extra
    for name, mirrored in names.items():
        original, found = inspect.getattr_static(kind, name), inspect.getattr_static(mirror, mirrored)
        if name in OPTIONS:
            assert options_of(OPTIONS[name]) == blocking(shown(original))[2:-1], name
            assert [each[:3] for each in shown(found)] == [each[:3] for each in blocking(shown(original))], name
            assert "on_send: collections.abc.Callable[[str], object] | None = None" in help_about(found), name
        elif inspect.isfunction(original):
            assert shown(found) == blocking(shown(original)), name
            assert found.__doc__, name
        elif (kind, name) != (SubmissionHandle, "request"):  # which has its type in the constructor
            assert type_of(mirror, mirrored) == blocking([(type_of(kind, name),)])[0][0], name


def help_about(function: Callable[..., Any]) -> str:
    return pydoc.render_doc(function, renderer=pydoc.TextDoc())


def options_of(kind: Any) -> list[tuple[str, ...]]:
    """What a typed dictionary of options takes, as parameters of `Flux2Session.submit`."""
    taken, parameters = get_type_hints(kind), inspect.signature(Flux2Session.submit).parameters.values()
    return [
        (each.name, str(each.kind), repr(each.default), inspect.formatannotation(taken[each.name]))
        for each in parameters
        if each.name in taken
    ]


def type_of(kind: Any, name: str) -> str:
    """Of which type an attribute is."""
    held = inspect.getattr_static(kind, name)
    if isinstance(held, property):
        return shown(cast("Any", held.fget))[-1][1]
    hint = get_type_hints(kind, localns=_names())[name]
    return inspect.formatannotation(get_args(hint)[0] if get_origin(hint) is Attribute else hint)


def test_it_is_made_with_the_same_arguments() -> None:
    """What a session is made with, another loop's aiohttp session excepted, is the same and is checked likewise."""
    assert shown(BlockingSession.__init__) == shown(Flux2Session.__init__)
    with pytest.raises(ConfigurationError, match="max_running"):
        BlockingSession("key", max_running=0)
    with pytest.raises(TypeError, match="nothing"):
        BlockingSession("key", nothing=0)  # type: ignore[call-arg]  # on purpose


def seen_by_type_checkers(flux: BlockingSession) -> None:
    """Never called: what a checker takes the mirror's methods for."""
    assert_type(flux.generate(KETTLE, timeout=1.0), ImageResult)
    assert_type(flux.credits(), float)
    assert_type(flux.fetch_record("task"), TaskRecord)
    assert_type(flux.submit(KETTLE).result(1.0), ImageResult)
    assert_type(flux.submit(KETTLE).request, Request | None)
    assert_type(flux.enqueue(KETTLE).result(), BlockingTask)
    assert_type(flux.enqueue(KETTLE).state, SubmissionState)
    assert_type(flux.rate_limits, tuple[RateLimit, ...])
    flux.submit(KETTLE, key="a", on_send=print, resend_within=1.0)
    flux.enqueue(KETTLE, steps=None)  # type: ignore[call-arg]  # `submit` alone takes them
    assert_type(flux.as_completed([KETTLE]), BlockingIterator[BlockingCompletion])
    assert_type(flux.attach("task").updates(every=1.0), BlockingIterator[TaskRecord])
    flux.credits(1)  # type: ignore[call-arg]  # it takes none


# --- what it does


def test_pictures_are_made_without_awaiting_anything(
    flux: BlockingSession, flux2_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """Submitting, waiting, following, asking and downloading, each by a plain call."""
    task = flux.submit(KETTLE, key="order-1", metadata={"order": 1})
    states = [record.state for record in task.updates(every=0.05)]
    result = task.result(timeout=120)

    assert states[-1] is TaskState.SUCCESS
    assert (task.done(), task.state, task.error, task.key, task.metadata) == (
        *(True, TaskState.SUCCESS, None, "order-1"),
        {"order": 1},
    )
    assert flux.submit(KETTLE, key="order-1") == task
    assert [path.parent for path in flux.download(result, tmp_path)] == [tmp_path]
    assert flux.fetch_record(task.id).state is TaskState.SUCCESS
    assert flux.generate(TextToImage("another one"), timeout=120).urls
    assert flux.credits() > 0
    flux.drain(timeout=5)
    assert flux.tasks() == ()
    assert flux.statistics().submitted == 2 == len(flux2_emulator.ledger.accepted)


def test_any_number_of_threads_share_one_session(flux: BlockingSession, flux2_emulator: RunningEmulator) -> None:
    """Sixteen threads make a picture each, and those with one key make one together."""
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda number: flux.generate(TextToImage(f"kettle {number}")), range(16)))
        tasks = list(threads.map(lambda _: flux.submit(KETTLE, key="one").id, range(16)))

    assert len({result.task_id for result in results}) == 16
    assert len({*tasks}) == 1
    assert len(flux2_emulator.ledger.accepted) == 17


def test_as_completed_takes_in_as_it_gives_out_and_in_the_consumers_thread(
    flux: BlockingSession, flux2_emulator: RunningEmulator
) -> None:
    """An endless iterable is taken in as far as there is room, where the consumer is; leaving stops the sending."""
    taken: list[int] = []

    def endless() -> Iterator[TextToImage]:
        while True:
            taken.append(threading.get_ident())
            yield TextToImage(f"kettle {len(taken)}")

    with flux.as_completed(endless(), max_running=3) as completions:
        done = [next(completions) for _ in range(5)]

    assert {*taken} == {threading.get_ident()}
    assert len(taken) <= 5 + 3 + 1
    assert len({each.index for each in done}) == 5
    assert all(each.result.urls and each.task and each.task.done() for each in done)
    given = len(taken)
    flux.drain(timeout=120)
    # A POST that was under way is finished.
    assert len(flux2_emulator.ledger.accepted) <= len(taken) == given


def test_one_failed_request_never_stops_the_rest(flux: BlockingSession) -> None:
    """What cannot be sent comes out as an error, and what the iterable raises after all that it gave."""

    def some() -> Iterator[Any]:
        yield KETTLE
        yield "no request"
        yield KETTLE
        raise LookupError("the database is away")

    done: list[BlockingCompletion] = []
    with pytest.raises(LookupError, match="away"):
        for each in flux.as_completed(some()):
            done.append(each)  # noqa: PERF402  what came before the error is wanted
    assert sorted((each.index, each.error is None) for each in done) == [(0, True), (1, False), (2, True)]
    with pytest.raises(InvalidRequestError, match="requests"):
        flux.as_completed(7)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigurationError, match="max_running"):
        flux.as_completed([KETTLE], max_running=0)


@pytest.mark.flux2_script(Script(plans=Plan(duration=30.0), render=False, limit=Limit(1, 30.0)))
def test_what_is_enqueued_can_be_looked_at_and_taken_back(flux2_emulator: RunningEmulator) -> None:
    """A handle tells where it is, goes before others, and can be withdrawn."""
    with BlockingSession(rate_limit=RateLimit(1, 30.0)) as flux:
        flux.enqueue(KETTLE).result(timeout=120)
        first, second = (flux.enqueue(TextToImage(name)) for name in ("first", "second"))
        assert (first.state, first.position, second.position) == (SubmissionState.QUEUED, 0, 1)
        second.priority = 1
        assert (second.priority, second.position, second.task, second.error) == (1, 0, None, None)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.05)
        assert second.withdraw()
        with pytest.raises(SubmissionWithdrawnError, match="withdrawn"):
            second.result()
        assert flux.remaining() is not None
        assert flux.estimate([KETTLE]).requests == 1
    assert len(flux2_emulator.ledger.accepted) == 1
    # Everything can still be read.
    assert first.state is SubmissionState.WITHDRAWN
    assert isinstance(first.error, SessionClosedError)


def test_on_send_is_a_plain_function_that_may_use_the_session(
    flux: BlockingSession, flux2_emulator: RunningEmulator
) -> None:
    """It runs before the POST, in a thread of its own, and what it raises keeps the request from being sent."""
    seen: list[object] = []

    def note(ref: str) -> None:
        seen.append((ref, len(flux2_emulator.ledger.accepted), flux.statistics().submitted))

    def refuse(ref: str) -> None:
        raise LookupError(ref)

    flux.submit(KETTLE, ref="mine", on_send=note)
    with pytest.raises(LookupError, match="other"):
        flux.submit(KETTLE, ref="other", on_send=refuse)
    assert seen == [("mine", 0, 0)]
    assert len(flux2_emulator.ledger.accepted) == 1


def test_the_page_of_the_guide_says_the_truth(
    flux2_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its example makes a picture, saves it, and makes three more."""
    monkeypatch.chdir(tmp_path)
    page = PACKAGE / "guide" / "blocking.md"
    names: dict[str, Any] = {}
    [block] = blocks(page)
    exec(compiled(str(block.parsed), page, block.line), names)  # noqa: S102  running the guide is the purpose
    names["main"]()

    assert len(flux2_emulator.ledger.accepted) == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{flux2_emulator.ledger.accepted[0]}-1.png"]


# --- where it ends


@pytest.mark.flux2_script(Script(plans=Plan(duration=60.0), render=False))
def test_a_session_that_is_closed_ends_what_waits_and_can_be_opened_again(flux2_emulator: RunningEmulator) -> None:
    """Other threads are told at once; what was settled can still be read; `attach` goes on in the next opening."""
    flux = BlockingSession()
    with pytest.raises(SessionClosedError, match="with BlockingSession"):
        flux.credits()
    # Programs that other tests import have sessions of their own, which stay open.
    before = {*threading.enumerate()}
    with flux, ThreadPoolExecutor(2) as threads:
        with pytest.raises(SessionClosedError, match="open already"):
            flux.open()
        task = flux.submit(KETTLE)
        with pytest.raises(TaskTimeoutError):
            task.result(timeout=0)
        waits = threads.submit(task.result), threads.submit(list, task.updates())
        until(lambda: all(each.running() for each in waits))
        left = flux.close()
        assert left.task_ids == (task.id,)
        for each in waits:
            assert isinstance(each.exception(timeout=5), SessionClosedError)
    assert flux.close().task_ids == ()
    with pytest.raises(SessionClosedError):
        task.result()
    assert new_threads(before) == []
    with flux:
        again = flux.attach(task.id)
        flux2_emulator.finish(task.id)
        flux.notify(task.id)
        assert again.result(timeout=120).urls
    assert again.result().urls
    assert len(flux2_emulator.ledger.accepted) == 1


def test_a_session_that_cannot_be_opened_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening without a key is an error that says so, and may be tried again."""
    monkeypatch.delenv("APIKLEY_API_KEY", raising=False)
    flux, before = BlockingSession(), {*threading.enumerate()}
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="APIKLEY_API_KEY"):
            flux.open()
    assert new_threads(before) == []
    for call in (flux.credits, flux.statistics):
        with pytest.raises(SessionClosedError, match=r"use `with BlockingSession\(...\)`"):
            call()


def new_threads(before: set[threading.Thread]) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread not in before]


def until(condition: Callable[[], object], limit: float = 120.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(program: str, **options: Any) -> "subprocess.Popen[str]":
    """A program of its own, whose standard error is to stay empty unless the test says otherwise."""
    head = "from flux2_async import *\nfrom flux2_async.blocking import BlockingSession\n"
    head += "KETTLE = TextToImage('a red kettle')\n"
    return subprocess.Popen(  # noqa: S603  our own words
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", head + dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.flux2_script(Script(plans=Plan(duration=60.0), render=False))
def test_a_program_that_forgets_to_close_ends_and_names_what_was_left(flux2_emulator: RunningEmulator) -> None:
    """The session is closed when the program ends, after threads that still use it, and the log names the task."""
    program = started(
        """
        import threading, time
        flux = BlockingSession().open()
        def late():
            time.sleep(0.3)
            print(flux.submit(KETTLE).id)
        threading.Thread(target=late).start()
        """
    )
    printed, log = program.communicate(timeout=120)

    assert program.returncode == 0
    assert flux2_emulator.ledger.accepted == [printed.strip()]
    assert f"by `flux.attach(task_id)` in a new session: {printed.strip()}" in log
    assert "Traceback" not in log


# Python 3.12 starts no thread once the main one has ended, and looks no name up in the others.
if sys.version_info[:2] != (3, 12):

    def test_threads_that_outlive_the_main_one_find_hosts_by_name(flux2_emulator: RunningEmulator) -> None:
        """A picture that is paid for then comes to who waits for it."""
        printed, log = started(
            """
            import os, threading, time
            address = os.environ["APIKLEY_BASE_URL"].replace("127.0.0.1", "localhost")
            flux = BlockingSession(base_url=address, polling=Polling(interval=0.05))
            flux.open()
            def late():
                time.sleep(0.3)
                print(flux.generate(KETTLE, timeout=120).task_id)
            threading.Thread(target=late).start()
            """
        ).communicate(timeout=120)
        assert (flux2_emulator.ledger.accepted, log) == ([printed.strip()], "")


@pytest.mark.flux2_script(Script(plans=Plan(duration=60.0), render=False))
def test_threads_that_outlive_the_main_one_share_an_account(flux2_emulator: RunningEmulator, tmp_path: Path) -> None:
    """What a thread submits under a key behind the end of the main one is known to the next process."""
    code = f"""
        import threading, time
        from flux2_async.coordination import HostCoordination
        flux = BlockingSession(coordination=HostCoordination({str(tmp_path / "shared.sqlite")!r}))
        flux.open()
        def late():
            time.sleep(0.3)
            print(flux.submit(KETTLE, key="order-1").id)
        threading.Thread(target=late).start()
        """
    for _ in range(2):
        printed, log = started(code).communicate(timeout=120)
        assert flux2_emulator.ledger.accepted == [printed.strip()]
        assert "Traceback" not in log


def test_after_a_fork_it_says_so(flux2_emulator: RunningEmulator) -> None:
    """In the child every call says to open a new session, which works; the parent's goes on."""
    program = started(
        """
        import os, sys
        flux = BlockingSession(polling=Polling(interval=0.05))
        with flux:
            task = flux.submit(KETTLE)
            print("parent", len(task.result().urls), flush=True)
            if os.fork() == 0:
                for call in (flux.credits, flux.tasks, task.result, flux.statistics, flux.open):
                    try:
                        call()
                    except RuntimeError as error:
                        print("child", "open a new session" in str(error), flush=True)
                print("child", flux.close().task_ids, flush=True)
                with BlockingSession(polling=Polling(interval=0.05)) as own:
                    print("child", own.attach(task.id).result().urls == task.record.result_urls, flush=True)
                os._exit(0)  # as multiprocessing ends its children
            os.wait()
            print("parent", flux.generate(KETTLE).task_id != task.id)
        """
    )
    printed, log = program.communicate(timeout=120)

    assert (program.returncode, log) == (0, "")
    assert printed.splitlines() == ["parent 1", *["child True"] * 5, "child ()", "child True", "parent True"]


SLOW = Script(plans=Plan(duration=60.0), render=False, latency=lambda endpoint: 1.5 * (endpoint == "createTask"))


@pytest.mark.parametrize(
    ("call", "paid"),
    [("flux.submit(KETTLE)", 1), ("task.result()", 0), ("list(flux.as_completed([KETTLE]))", 1), ("flux.drain()", 0)],
)
@pytest.mark.flux2_script(SLOW)
def test_ctrl_c_ends_the_wait_and_nothing_is_paid_twice(call: str, paid: int, flux2_emulator: RunningEmulator) -> None:
    """Ctrl-C in a thread that waits comes out at once; a POST under way is finished, and its task is outstanding."""
    program = started(
        f"""
        import time
        with BlockingSession() as flux:
            task = flux.attach("0123456789abcdef")
            print("waits", flush=True)
            try:
                {call}
            except KeyboardInterrupt:
                flux.credits()
                while len(tasks := [task.id for task in flux.tasks() if task.ref]) < {paid}:
                    time.sleep(0.01)
                print("interrupted", *tasks, flush=True)
        """
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "waits\n"
    until(lambda: len(flux2_emulator.ledger.requests) >= paid)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    printed, log = program.communicate(timeout=120)

    assert program.returncode == 0, log
    assert printed.split() == ["interrupted", *flux2_emulator.ledger.accepted]
    assert len(flux2_emulator.ledger.accepted) == paid


# --- what to write instead


def test_a_plain_with_says_what_to_write() -> None:
    """Forgetting `async` names both ways."""
    with pytest.raises(ConfigurationError, match=r"async with Flux2Session.*BlockingSession"):
        with cast("Any", Flux2Session("key")):
            pass  # pragma: no cover


@pytest.mark.real_time
async def test_an_open_session_says_in_another_thread_what_to_do(flux2_emulator: RunningEmulator) -> None:
    """Plain methods and handles alike, where the thread has no event loop at all."""
    async with session_for(flux2_emulator, rate_limit=RateLimit(1, 30.0)) as flux:
        await flux.submit(KETTLE)
        handle = flux.enqueue(KETTLE)
        calls: list[Callable[[], object]] = [
            flux.tasks,
            flux.remaining,
            lambda: flux.attach("another"),
            lambda: flux.notify("another"),
            lambda: flux.enqueue(KETTLE),
            lambda: flux.as_completed([KETTLE]),
            lambda: flux.pause(1.0),
            handle.withdraw,
            lambda: setattr(handle, "priority", 3),
        ]
        for call in calls:
            told = await asyncio.to_thread(error_of, call)
            assert isinstance(told, ConfigurationError), (call, told)
            assert "run_coroutine_threadsafe" in str(told)
            assert "BlockingSession" in str(told)


def error_of(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001  the test looks at what it is
        return error
    return None


def test_what_can_never_work_says_so(flux: BlockingSession, flux2_emulator: RunningEmulator) -> None:
    """An aiohttp session of the caller's is refused, and so are calls that would wait for themselves."""

    async def made() -> None:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(ConfigurationError, match="connector"):
                BlockingSession("key", http=http)

    asyncio.run(made())
    told: list[object] = []
    flux.observe(lambda _: told.append(error_of(flux.statistics)))
    flux.submit(KETTLE)
    assert {str(each).partition(",")[0] for each in told} == {"called in the session's own thread"}
