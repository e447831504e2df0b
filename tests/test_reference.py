"""The reference: each public name says its arguments, units, what None means, results and errors; examples run."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import attrs
import pytest
from documents import compiled

import flux2_async
from flux2_async.cli.documents import HOMES
from flux2_async.emulator import Emulator, Script

SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):\s*$", re.MULTILINE)
ENTRY = re.compile(r"^    \*{0,2}(\w+): ")
# What stands at a number, so that nobody has to guess what it counts.
UNITS = re.compile(
    r"second|credit|hour|minute|number|fraction|probability|times|to 1|0 to 100|factor|As for `|As in|likewise",
    re.IGNORECASE,
)
# Users are given these, and make none.
GIVEN = ("Batch", "Completion", "Handle", "Iterator", "RunningEmulator", "SubmissionSteps", "BlockingTask")
# What a batch and the emulator call themselves.
INNER = re.compile(r"\.Journal\.(?!unknown|resolve_unknown|outcomes)|\.Ledger\.(?!polls_of|max_in_window)")
NONE = re.compile(r"None|[Ww]ithout|As (for|in) `|[Dd]efault|[Uu]nless|likewise")


def public() -> Iterator[tuple[str, Any]]:
    """The public names, once each, with the public members of classes of ours."""
    seen: set[int] = set()
    for home in HOMES:
        module = import_module(f"flux2_async.{home}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in seen or not getattr(value, "__module__", "").startswith("flux2_async"):
                continue
            seen.add(id(value))
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for member, held in vars(value).items():
                    function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
                    shown = f"{module.__name__}.{name}.{member}"
                    if not member.startswith("_") and inspect.isfunction(function) and not INNER.search(shown):
                        yield shown, held


def sections(text: str) -> dict[str, str]:
    """The parts of a docstring by their heads."""
    found = SECTION.split(text)
    return dict(zip(found[1::2], found[2::2], strict=True))


def entries(section: str) -> dict[str, str]:
    """What is said of each name."""
    told: dict[str, str] = {}
    for line in section.splitlines():
        if match := ENTRY.match(line):
            told[match[1]] = line
        elif told:
            told[next(reversed(told))] += " " + line.strip()
    return told


def missing(name: str, value: Any) -> Iterator[str]:
    """What a docstring does not say."""
    text = inspect.getdoc(value)
    if not text:
        yield f"{name}: no docstring"
    # What does the same as something else says so.
    elif not (isinstance(value, property) or any(words in text for words in ("; see `", ", see `", "Args: As for `"))):
        parts = sections(text)
        told = entries(parts.get("Attributes", "")) | entries(parts.get("Args", ""))
        if inspect.isclass(value):
            # Fields of a class below are told there.
            for parent in value.__mro__[1:]:
                told = entries(sections(inspect.cleandoc(parent.__doc__ or "")).get("Attributes", "")) | told
            named = fields(name, value)
        else:
            function = getattr(value, "__func__", value)
            named = {each: it for each, it in inspect.signature(function).parameters.items() if each != "self"}
            yield from results_missing(name, function, parts, needed=bool(named))
        head = text.partition("Attributes:")[0].partition("Args:")[0]
        yield from (line for each in named.values() for line in argument_missing(name, each, told, head))


def fields(name: str, value: type) -> dict[str, inspect.Parameter]:
    """What a class is made with by its users."""
    made = attrs.has(value) or "__init__" in vars(value)
    if issubclass(value, BaseException) or name.endswith(GIVEN) or not made:
        return {}
    return {each: it for each, it in inspect.signature(value).parameters.items() if not each.startswith("_")}


def results_missing(name: str, function: Any, parts: dict[str, str], *, needed: bool) -> Iterator[str]:
    """What is not said of what comes back, which a sentence tells where nothing is given."""
    returns = inspect.signature(function).return_annotation
    if needed and returns not in (None, "None", inspect.Signature.empty) and not {"Returns", "Yields"} & parts.keys():
        yield f"{name}: Returns"
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if "Raises" not in parts and any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(body)):
        yield f"{name}: Raises"


def argument_missing(name: str, parameter: inspect.Parameter, told: dict[str, str], head: str) -> Iterator[str]:
    """What is not said of an argument or a field."""
    said, kind = told.get(parameter.name), str(parameter.annotation)
    if said is None:
        yield f"{name}: {parameter.name}"
        return
    if parameter.default is None and "None" in kind and not NONE.search(said):
        yield f"{name}: what None means for {parameter.name}"
    # Of whole numbers it is evident, and one unit may be said for all fields.
    counts = re.search(r"\bfloat\b", kind) and "Callable" not in kind
    if counts and not UNITS.search(said) and "econds" not in head:
        yield f"{name}: the unit of {parameter.name}"


def test_every_public_name_says_what_its_user_has_to_know() -> None:
    """Arguments and fields, units, what None means, what is given back, and the errors it raises itself."""
    assert [line for name, value in public() for line in missing(name, value)] == []


# A number with a unit, as "8 to 95 s", "10 MB" and "24 hours"; what is passed or set (`60.0`) is none.
FIGURE = re.compile(
    r"(?<![\w.`(=-])\d[\d,.]*( (to|or|in|in any|per) \d[\d,.]*)? ?"
    r"(%|(?<= )(m?s|(second|minute|hour|day|character|credit|byte|pixel)s?|[kMG]i?B)\b)"
)
# Who says so: the service, what was seen or measured and when, or we.
SOURCE = re.compile(r"\bdocument(s|ed)\b|\b(seen|measured)\b[^;]*\b20\d\d\b|\bour choice\b|\bby default\b")


def without_source(text: str) -> list[str]:
    """The paragraphs, and what is said of one argument or error, in which a figure stands and nobody who says so."""
    parts = re.split(r"\n\n|\n(?=    \w+: )", text)
    return [
        " ".join(part.split()) for part in parts if FIGURE.search(" ".join(part.split())) and not SOURCE.search(part)
    ]


def test_a_figure_has_its_source() -> None:
    """Limits, times and sizes say whether they are documented, seen (when), or our choice."""
    assert [(name, part) for name, value in public() for part in without_source(inspect.getdoc(value) or "")] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A link is valid for 20 minutes.", 1),
        ("A link is valid for 20 minutes (documented).", 0),
        ("Tasks take 8 to 95 s.", 1),
        ("Tasks were seen to take 8 to 95 s.", 1),
        ("Tasks take 8 to 95 s, as seen in 2026.", 0),
        ("Args:\n    a: At most 10 MB.\n    b: As documented.", 1),
        ("At most 20 new ones in 10 s.\n\nThe next is our choice: half as much.", 1),
        ("After 429s and 503s, with 8 of them, in Python 3.11: `sleep(60)`.", 0),
    ],
)
def test_figures_are_recognised(text: str, count: int) -> None:
    """The rule of the test above: numbers with a unit, and words that name a source, argument by argument."""
    assert len(without_source(text)) == count


# How these are called is told by no signature.
SHOWN = [
    "Budget",
    "Callbacks",
    "Flux2Session.as_completed",
    "Flux2Session.enqueue",
    "Flux2Session.observe",
    "Flux2Session.recover",
    "ImageTask.updates",
    "SubmissionSteps",
    "batch.run_batch",
    "batch.Journal.resolve_unknown",
    "batch.report.serve_report",
    "batch.report.write_report",
    "receivers.serve",
    "telemetry.Telemetry.context",
    "webhooks.sign",
]
EXAMPLES = {
    name: textwrap.dedent(parts["Example"])
    for name, parts in ((name, sections(inspect.getdoc(value) or "")) for name, value in public())
    if "Example" in parts
}


@pytest.mark.parametrize("name", SHOWN)
async def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not obvious has an example, and it runs as it stands."""
    monkeypatch.chdir(tmp_path)
    homes = [import_module(f"flux2_async.{home}".rstrip(".")) for home in HOMES]
    names: dict[str, Any] = {each: getattr(home, each) for home in homes for each in home.__all__}
    async with Emulator(Script(render=False)) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        async with flux2_async.Flux2Session() as flux:
            request = flux2_async.TextToImage("a red kettle on a slate worktop")
            task = await flux.submit(request)
            names |= {"flux": flux, "request": request, "task": task, "task_id": task.id}
            names |= {"Path": Path, "propagate": pytest.importorskip("opentelemetry.propagate"), "time": time}
            # A batch that has run is there for what reads one.
            for each in dict.fromkeys(("batch.run_batch", name)):
                pending = eval(compiled(EXAMPLES[f"flux2_async.{each}"], tmp_path / each), names)  # noqa: S307  running them is the purpose
                if inspect.isawaitable(pending):
                    await pending


def test_help_begins_with_our_text() -> None:
    """`help(flux2_async)` says what it is, shows how it is used and where the guide is before it lists anything."""
    shown = pydoc.render_doc(flux2_async, renderer=pydoc.TextDoc()).splitlines()
    assert shown[3].strip() == "flux2_async - asyncio client for Flux-2 pictures behind Apikley's jobs API."
    assert any("flux2 docs" in line for line in shown[4:20])


@pytest.mark.parametrize("home", ["flux2_async", "flux2_async.models", "flux2_async.session", "flux2_async.tasks"])
def test_packages_list_what_they_import_at_first_use(home: str) -> None:
    """`help`, `dir` and an editor's completion find every public name, used already or not."""
    code = f"import inspect, {home} as module; print({{*module.__all__}} - dict(inspect.getmembers(module)).keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)  # noqa: S603  our own words
    assert done.stdout == "set()\n"


def test_a_poll_is_called_a_poll() -> None:
    """Where tasks are polled, comments, docstrings and names have the word that the public ones have, and no other."""
    folder = Path(flux2_async.__file__).parent / "tasks"
    looks = re.compile(r"(?<![a-z])look(s|ed|ing)?(?![a-z])(?! after\b)(?!-up)", re.IGNORECASE)
    found = [
        f"{path.name}: {line}"
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if looks.search(line)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("name", "home"), [("BlockingSession", "blocking"), ("run_batch", "batch"), ("Emulator", "emulator")]
)
def test_a_name_of_a_submodule_is_found(name: str, home: str) -> None:
    """Whoever looks for it in the package itself is told where it is, also by an import."""
    told = f"module 'flux2_async' has no attribute '{name}': {name} is in flux2_async.{home}"
    with pytest.raises(AttributeError, match=f"^{told}$"):
        getattr(flux2_async, name)
    with pytest.raises(ImportError, match=f"^{told}$"):
        exec(f"from flux2_async import {name}")  # noqa: S102  our own words
    assert not hasattr(flux2_async, name)


def test_a_name_that_is_nowhere() -> None:
    """What is not public anywhere is told as Python tells it."""
    with pytest.raises(AttributeError, match=r"^module 'flux2_async' has no attribute 'Nothing'$"):
        flux2_async.Nothing  # noqa: B018  the look is the test


def test_annotations_of_public_names_can_be_resolved() -> None:
    """Containers of dependencies, pydantic's `validate_call` and programs that make commands of functions do so."""
    unresolved: list[str] = []
    for name, value in public():
        made = [value.__init__] if inspect.isclass(value) and not value.__name__.endswith(GIVEN) else []
        for asked in [getattr(value, "fget", None) or getattr(value, "__func__", value), *made]:
            try:
                get_type_hints(asked)
            except NameError as error:
                unresolved.append(f"{name}: {error}")
        if attrs.has(value):
            attrs.resolve_types(value)

    assert unresolved == []


def test_a_public_module_is_loaded_when_its_name_is_used() -> None:
    """`import flux2_async` alone is enough to write `flux2_async.batch.run_batch`."""
    code = "import flux2_async as f; print(f.batch.run_batch.__name__, hasattr(f, 'nothing'), hasattr(f, '_nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own

    assert done.stdout.split() == ["run_batch", "False", "False"]
