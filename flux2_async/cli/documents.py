"""`flux2 docs` and `flux2 recipe`: the guide, the docstrings and the recipes; needs nothing of the extra `cli`."""

import ast
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from types import ModuleType
from typing import Final, get_origin

PACKAGE: Final = "flux2_async"
# Where public names are, those of the package itself first; an extra that one of them needs may be missing.
HOMES: Final = (
    "", "errors", "models", "batch", "batch.report", "receivers", "coordination", "webhooks", "emulator", "testing",
    "telemetry", "blocking",
)  # fmt: skip
WIDTH: Final = 20
LINE: Final = 100
NARROW: Final = 40
CODE: Final = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
# The lines of one, or of an item of a list; what begins otherwise is a table, a heading or a comment.
PARAGRAPH: Final = re.compile(r"^(?![|#]|<!--)(- |[0-9]+\. )?.+(?:\n(?![|#]|<!--|- |[0-9]+\. ).+)*", re.MULTILINE)
# Says in a class's text that it is no program that makes one.
MADE: Final = re.compile(r"\b[Mm]ade by `")
# Before a name in a signature.
MODULE: Final = re.compile(r"\b(?:[a-z_][a-z0-9_]*\.)+(?=[A-Za-z_])")


def docs(name: str | None = None, /) -> int:
    """Show a page of the guide, or what a public name does; without a name, list the pages.

    Example: flux2 docs waiting

    Args:
        name: A page, or a name such as Flux2Session.submit or batch.run_batch.
    """
    pages = _texts("guide", ".md")
    if not name:
        for each, page in pages.items():
            # The title, an empty line, and what the page is about.
            _say(f"{each:<{WIDTH}} {page.splitlines()[2]}")
        _say("\nflux2 docs PAGE shows a page, flux2 docs NAME explains a public name, such as Flux2Session.submit.")
        return 0
    text = _fitted(pages[name]) if name in pages else _described(name)
    if text is None:
        known = sorted({each for _, module in public_modules() for each in module.__all__})
        return _missing("docs: no page and no public name", name, _members_like(name) or [*pages, *known])
    _say(text.rstrip("\n"))
    return 0


def recipe(name: str | None = None, /) -> int:
    """Print a whole program to start from; without a name, list them.

    Example: flux2 recipe fastapi > app.py

    Args:
        name: One of the list.
    """
    notebooks = _texts("recipes", ".ipynb")
    programs = _texts("recipes", ".py") | notebooks
    if name is None:
        for each, text in sorted(programs.items()):
            source = "".join(json.loads(text)["cells"][0]["source"]) if each in notebooks else text
            _say(f"{each:<{WIDTH}} {(ast.get_docstring(ast.parse(source)) or '').partition(chr(10))[0]}")
        return 0
    if name not in programs:
        return _missing("recipe: none is called", name, list(programs))
    _say(programs[name].rstrip("\n"))
    return 0


def _say(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A program that is written to a file is read as UTF-8, whatever the terminal speaks.
        sys.stdout.reconfigure(encoding="utf-8")
    print(text)  # noqa: T201  rich may be missing, and would wrap programs


def _fitted(page: str) -> str:
    """Break the paragraphs of a page for the terminal; code and tables stay, and so does all of it in a pipe."""
    if not sys.stdout.isatty():
        return page
    width = max(get_terminal_size().columns, NARROW)

    def fitted(found: re.Match[str]) -> str:
        text, indent = " ".join(map(str.strip, found[0].splitlines())), " " * len(found[1] or "")
        return fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    parts = CODE.split(page)
    # Every second one is code.
    return "".join(part if index % 2 else PARAGRAPH.sub(fitted, part) for index, part in enumerate(parts))


def _missing(what: str, name: str, known: Sequence[str]) -> int:
    close = get_close_matches(name, known, n=3)
    advice = f"do you mean {', '.join(close)}?" if close else f"flux2 {what.partition(':')[0]} lists what there is"
    print(f"flux2: {what} {name!r}; {advice}", file=sys.stderr)  # noqa: T201  rich may be missing
    return 2


def _texts(folder: str, ending: str) -> dict[str, str]:
    """The texts of a folder of the package by their names without the ending, in alphabetical order."""
    paths = sorted((Path(__file__).parents[1] / folder).glob(f"*{ending}"))
    return {path.stem: path.read_text("utf-8") for path in paths}


def public_modules() -> Iterator[tuple[str, ModuleType]]:
    """Give the modules that have public names, and their names within the package; leave out what lacks an extra."""
    for home in HOMES:
        try:
            yield home, import_module(f"{PACKAGE}.{home}".rstrip("."))
        except ImportError:
            continue


def _members_like(name: str) -> list[str]:
    """Give what a public class has whose name is nearly the last part of this one."""
    head, _, member = name.removeprefix(f"{PACKAGE}.").rpartition(".")
    owners = [getattr(module, head) for _, module in public_modules() if head in module.__all__]
    known = [each for owner in owners[:1] if inspect.isclass(owner) for each in dir(owner) if not each.startswith("_")]
    return [f"{head}.{each}" for each in get_close_matches(member, known, n=1)]


def _described(name: str) -> str | None:
    """Describe a public name, with or without the module's name before it."""
    name = name.removeprefix(f"{PACKAGE}.")
    for home, module in public_modules():
        if name in (home, PACKAGE if not home else None):
            return _text_about(name, module)
        head, *rest = name.removeprefix(f"{home}.").split(".")
        if head not in module.__all__:
            continue
        value = getattr(module, head)
        for part in rest:
            value = None if part.startswith("_") else getattr(value, part, None)
        if value is not None:
            return _text_about(".".join([module.__name__, head, *rest]), value)
    return None


def _text_about(name: str, value: object) -> str:
    if alias := _alias(value):
        return f"{name} = {alias}"
    if not (callable(value) or inspect.ismodule(value) or hasattr(value, "__get__")):
        return f"{name} = {value!r}"
    made = inspect.isclass(value) and MADE.search(value.__doc__ or "")
    head = f"{name}{_signature(value)}" if callable(value) and not made else name
    parts = [head, inspect.getdoc(value) or "", *_members(value)]
    return "\n\n".join(part for part in parts if part)


def _alias(value: object) -> str:
    """Give what a name for types stands for; empty for what is none."""
    return MODULE.sub("", str(value)) if get_origin(value) is not None else ""


def _signature(value: Callable[..., object]) -> str:
    try:
        text = MODULE.sub("", str(inspect.signature(value)))
        return fill(text, LINE, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    except ValueError:
        # An enumeration, an exception made in C.
        return ""


def _members(value: object) -> Iterator[str]:
    """What a class or a module has, a line each."""
    if inspect.ismodule(value):
        names = list(value.__all__)
    elif inspect.isclass(value):
        names = _names_of(value)
    else:
        return
    yield "\n".join(f"  {each:<{WIDTH}} {_summary(value, each)}" for each in names)


def _names_of(kind: type) -> list[str]:
    """Methods, properties and fields of a class, its own first, without what its own text lists."""
    text = inspect.getdoc(kind) or ""
    ours = [each for each in kind.__mro__ if each.__module__.startswith(PACKAGE)]
    names = [name for name in dict.fromkeys(name for each in ours for name in vars(each)) if not name.startswith("_")]
    has = {name for name in names if callable(value := getattr(kind, name, None)) or hasattr(value, "__get__")}
    return [name for name in names if name in has and not re.search(rf"^    {name}: ", text, re.MULTILINE)]


def _summary(owner: object, name: str) -> str:
    value = getattr(owner, name)
    text = _alias(value) or inspect.getdoc(value) or ""
    # A field is told of in the text of the class that has it.
    about = "" if text else "\n".join(inspect.getdoc(each) or "" for each in getattr(owner, "__mro__", ()))
    told = re.search(rf"^    {name}: (.*)", about, re.MULTILINE)
    return told[1] if told else text.partition("\n")[0]
