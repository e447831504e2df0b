"""Each part of the benchmarks runs, in a size at which nothing is measured.

Peers' clients are not installed where tests run; what is here needs none of them. The parts use processes and real
time of their own, and no figure is looked at that a busy machine could change.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as everything
from benchmarks import (
    alone,
    batch,
    cold,
    command,
    contenders,
    cpu,
    dialects,
    imports,
    instructions,
    limit,
    link,
    looks,
    memory,
    receiving,
    service,
    stream,
    telemetry,
)
from benchmarks.contenders import FLOOR, FRESH, OURS, Setting
from benchmarks.table import Table

BOTH = [FLOOR, OURS]
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes of the benchmarks find their modules where the repository begins; their silence ends with the test."""
    monkeypatch.chdir(ROOT)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has an interpreter of its own, so that figures are nobody else's, runs in this one."""

    def call(function: Callable[..., Any], /, **arguments: Any) -> Any:
        return json.loads(json.dumps(asyncio.run(function(**json.loads(json.dumps(arguments))))))

    monkeypatch.setattr(alone, "call", call)


def positive(values: Any) -> bool:
    return all(isinstance(value, float | int) and value > 0 for value in values)


@pytest.mark.usefixtures("here")
def test_cpu_compares_the_floor_with_us() -> None:
    """Each contender takes its tasks from creation to picture, with both requests; a floor is 1 of itself."""
    table = cpu.measure([FLOOR, FRESH, OURS], repeats=1, count=1, at_once=2)

    assert [row[:2] for row in table.rows] == [
        [request, name] for request in cpu.REQUESTS for name in (FLOOR, FRESH, OURS)
    ]
    assert all(positive(row[2:]) for row in table.rows)
    assert table.rows[0][-2] == table.rows[1][-1] == 1.0


def test_fresh_connections_are_seen() -> None:
    """The loop with kept-alive connections is told from the one with fresh ones."""
    with service.running() as running:
        setting = {"url": running.url}
        for name, reused in ((FRESH, 0), (FLOOR, 1)):
            alone.call(cpu.seconds_per_task, name=name, setting=setting, count=1, at_once=1)
            assert running.books().reused == reused


def test_instructions_are_counted_or_said_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a counter the table says so instead of giving numbers."""
    monkeypatch.setattr(instructions, "counter", lambda: None)

    for table in (instructions.measure(BOTH), receiving.measure_instructions(), telemetry.measure()):
        assert table.rows == []
        assert "not available" in table.notes[0]


def test_instructions_of_callbacks_are_those_of_callbacks_alone() -> None:
    """A process that waits for more callbacks than come ends when those that were sent have come."""
    with service.running() as running:
        assert (
            alone.call(receiving.receive, name="ours", url=running.url, count=5, pace=0.0, reads=False, expected=8)
            is None
        )


def test_memory_is_measured_with_and_without_waiters() -> None:
    """There are figures for tasks that nobody awaits and that somebody awaits, and for a loop that keeps as much."""
    table = memory.measure([FLOOR, OURS], repeats=1, tasks=100)

    assert [row[:2] for row in table.rows] == [[FLOOR, 100], [OURS, 100], [memory.KEEPING, 100]]
    assert len(table.rows[0]) == len(table.columns)


@pytest.mark.usefixtures("here")
def test_optimum_and_cost_of_what_else_refuses() -> None:
    """The optimum follows from what is known, and who is refused for another's sake loses nothing."""
    strangers, stray, no_burst = limit.SITUATIONS
    assert [each.optimum(60, 10.0) for each in limit.SITUATIONS] == [30.0, 30.0, 29.5]
    rows = [limit.run_refused(OURS, each, says_when=True, period=1.0, tasks=25) for each in (strangers, stray)]

    assert [row[3:5] for row in rows] == [[15, 0], [1, 0]]
    refused, lost = limit.run_refused(OURS, no_burst, says_when=False, period=1.0, tasks=3)[3:5]
    assert lost == 0
    assert refused >= 1


@pytest.mark.usefixtures("here")
def test_known_limit_is_never_refused() -> None:
    """Told the limit we lose nothing and are refused nothing; told the double, we lose nothing."""
    known, wrong = (limit.run(limit.Case(OURS, believed, says_when=True), 1.0, 25) for believed in (20, 40))

    assert known[:5] == [OURS, "known", "yes", 0, 0]
    assert wrong[:3] + wrong[4:5] == [OURS, "believed 40", "yes", 0]
    assert wrong[3] >= 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("price", [None, 0.03])
def test_looks_under_a_limit_are_known(price: float | None) -> None:
    """Where looks are refused we lose nothing, and the optimum is computed."""
    row = looks.run(looks.Case(OURS, price, says_when=False), 4, 5.0)

    assert row[:3] == [OURS, "every 0.5 s" if price is None else "price 0.03", "no"]
    assert row[3] == 4
    assert row[5] == 0
    assert row[7] == pytest.approx(1.6)
    assert row[8] > 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "reads"), [("by hand", False), ("ours", True)])
def test_every_callback_reaches_its_waiter(name: str, reads: bool) -> None:
    """A receiver hands each callback to the coroutine that waits for it."""
    with service.running() as running:
        alone.call(receiving.make, url=running.url, count=20)
        figures = alone.call(receiving.receive, name=name, url=running.url, count=20, pace=200.0, reads=reads)

        assert positive(figures.values())
        assert running.books().polls == (20 if reads else 0)


def test_the_command_is_compared_with_a_bare_application() -> None:
    """Version and help run beside Python and the parser alone; what they take is for a quiet machine to judge."""
    table = command.measure(1)

    assert [row[0] for row in table.rows] == list(command.COMMANDS)
    assert all(row[1] > 0 for row in table.rows)


def test_imports_are_compared_with_aiohttp() -> None:
    """Each module is imported in an interpreter of its own."""
    table = imports.measure(1, ("aiohttp", "flux2_async"))

    assert [row[0] for row in table.rows] == [
        "import aiohttp",
        "import flux2_async",
        "make, open and close the first session",
    ]
    assert all(positive(row[1:2]) for row in table.rows)


@pytest.mark.usefixtures("here")
def test_batch_measures_each_tenth() -> None:
    """A batch is measured from its first tenth to its last."""
    table = batch.measure(20)

    assert [row[0] for row in table.rows] == [2 * n for n in range(1, 11)]
    assert all(positive(row[3:]) for row in table.rows)


@pytest.mark.usefixtures("here")
def test_batch_is_compared_with_its_requests_alone() -> None:
    """There is a figure for a request in a batch and one for the same in `as_completed`."""
    table = batch.measure_beside(1, 20)

    assert [row[0] for row in table.rows] == [*batch.WAYS]
    assert table.rows[0][2] == 1.0
    assert all(positive(row[1:]) for row in table.rows)


@pytest.mark.usefixtures("here")
def test_cold_start_compares_the_loop_with_us() -> None:
    """The first tasks of a process are measured in real time, with the looks that they took."""
    table = cold.measure([FRESH, OURS], 1, duration=0.2, tasks=2, interval=0.1)

    assert [row[0] for row in table.rows] == [*cold.WAYS]
    assert all(positive(row[1:4]) and row[2] >= 1 for row in table.rows)


@pytest.mark.usefixtures("here")
def test_telemetry_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is observed in each way is held against one that is not, with the polls that both made."""

    def counted(_: object, function: Callable[..., Awaitable[Any]], **arguments: Any) -> int:
        alone.call(function, **arguments)
        return 3000 * int(arguments["count"])

    monkeypatch.setattr(instructions, "counter", lambda: print)
    monkeypatch.setattr(instructions, "counted", counted)
    table = telemetry.measure([telemetry.Case("TLS", secure=True, at_once=2, waves=(1, 2))])

    assert [row[1] for row in table.rows] == [*telemetry.WAYS]
    assert all(row[2:4] == [1.5, 0.0] and row[4] >= 1 for row in table.rows)


def test_telemetry_is_compared_with_none_in_cpu_time() -> None:
    """Both of a pair are measured with tasks over TLS, and what one takes more is told of all pairs and of each."""
    (row,) = telemetry.measure_seconds(1, telemetry.Case("TLS", secure=True), tasks=5, between=0.01).rows

    assert positive(row[1:3])
    assert row[3:] == [100 * (row[2] / row[1] - 1)] * 3


@pytest.mark.usefixtures("here")
def test_stream_compares_sizes() -> None:
    """All requests of either size come back with a picture."""
    table = stream.measure(1, (5, 20))

    assert [row[0] for row in table.rows] == [5, 20]
    assert all(positive(row) for row in table.rows)


def test_link_compares_connections_opened_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways are measured; that one is shorter is seen on virtual time."""
    monkeypatch.setattr(link, "WAVES", 2)
    rows = link.measure().rows
    assert [row[0] for row in rows] == ["opened ahead, as it is", "opened at the permit"]
    assert all(isinstance(cell, float) for row in rows for cell in row[1:])


@pytest.mark.parametrize("dialect", dialects.DIALECTS, ids=lambda dialect: dialect.prefix)
def test_service_answers_in_each_dialect(dialect: dialects.Dialect) -> None:
    """What is created under an id is found under it, first running and then finished."""
    created = dialect.created("http://service", "a1")
    running = dialect.look("http://service", "/requests/a1/status", "a1", finished=False)
    finished = dialect.look("http://service", "/requests/a1", "a1", finished=True)

    assert '"a1"' in created
    assert dialects.picture("a1") not in running
    assert dialects.picture("a1") in finished


@pytest.mark.usefixtures("here")
def test_service_counts_what_it_refuses() -> None:
    """Above the limit a creation is refused, and the books say so."""
    with service.running(limit=1, period=60.0) as running:
        made = alone.call(limit.burst, name=FLOOR, setting={"url": running.url}, tasks=3)

        assert made == 1
        assert (running.books().created, running.books().refused) == (1, 2)


def test_contenders_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who can be imported takes part."""
    installed = {"aiohttp", "flux2_async"}
    monkeypatch.setattr(contenders, "find_spec", lambda name: name in installed or None)

    assert contenders.available() == [FLOOR, FRESH, OURS]


def test_setting_names_no_service_but_the_own() -> None:
    """Nothing is measured but on loopback."""
    with service.running() as running:
        assert Setting(running.url).url.startswith("http://127.0.0.1:")


def test_table_prints_three_digits() -> None:
    """A table is Markdown; what is not available is a dash."""
    table = Table("T", ["", "a"], [["x", 1.23456], ["y", 12345.6], ["z", None]], ["n"])

    assert table.markdown() == "### T\n\n|  | a |\n| --- | --- |\n| x | 1.23 |\n| y | 12346 |\n| z | - |\n\n- n\n"


def test_the_figures_of_the_readme_are_measured_by_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """`readme` is no part of everything, and measures CPU, instructions, memory and what becomes of a burst."""
    table = Table("T", [], [])
    asked: dict[str, Any] = {}

    def measured(name: str) -> Callable[..., Table]:
        def measure(*given: object) -> Table:
            asked[name] = given
            return table

        return measure

    for part in (cpu, instructions, memory, limit):
        monkeypatch.setattr(part, "measure", measured(part.__name__))

    wish = everything.Wish([FLOOR, FRESH, OURS, "openai"], 5, 10.0)
    assert [*everything.readme(wish)] == [table] * 4
    assert asked == {
        "benchmarks.cpu": (wish.names, 3),
        "benchmarks.instructions": ([FLOOR, FRESH, OURS],),
        "benchmarks.memory": (wish.names, 1),
        "benchmarks.limit": (wish.names, 10.0),
    }
    assert everything.CHOICES.keys() - everything.PARTS.keys() == {"readme"}


@pytest.mark.usefixtures("here")
def test_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints the tables and what they were made with."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "decode", "--repeats", "1", "--json"])
    everything.main()

    document = json.loads(capsys.readouterr().out)
    assert document["aiohttp"]
    assert [table["title"] for table in document["tables"]] == ["Decoding one recordInfo reply, µs"]
    assert {"json by hand", OURS} <= {row[0] for row in document["tables"][0]["rows"]}
