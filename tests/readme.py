"""The Python blocks of the README; a comment `<!-- recipe: name -->` above one makes it a recipe."""

import ast
import re
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

README = Path(__file__).parent.parent / "README.md"

RECIPE = re.compile(r"<!-- recipe: ([a-z]+) -->\s*\Z")


def blocks() -> list[Example]:
    return list(Sybil(parsers=[PythonCodeBlockParser()]).parse(README).examples())


def name_of(example: Example) -> str | None:
    """The recipe's name, or None for a block that is no recipe."""
    found = RECIPE.search(example.document.text[: example.region.start])
    return found and found[1]


def compiled(example: Example) -> CodeType:
    """The block as code whose tracebacks name the lines of the README."""
    source = "\n" * example.line + str(example.parsed)
    code = compile(source, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    return code


def imported(example: Example) -> dict[str, Any]:
    """Run a block as a module that is imported, and give its names."""
    # Some libraries look up the module of a function.
    module = sys.modules["app"] = ModuleType("app")
    exec(compiled(example), vars(module))  # noqa: S102  running the README is the purpose
    return vars(module)


def recipes() -> dict[str, Example]:
    return {name: example for example in blocks() if (name := name_of(example)) is not None}


def recipe(name: str) -> Example:
    """The recipe of that name; where its framework cannot be installed, who asks for it is skipped."""
    if name == "aiogram":
        pytest.importorskip(name, reason=f"{name} is not on the path: it has no release for this Python")
    return recipes()[name]
