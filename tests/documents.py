"""What users read and start: the Python blocks of the README and the guide, and the recipes."""

import ast
import json
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from programs import package
from sybil import Example, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import flux2_async

ROOT = Path(__file__).parent.parent
PACKAGE = Path(flux2_async.__file__).parent
README = ROOT / "README.md"
PAGES = [README, *sorted((PACKAGE / "guide").glob("*.md"))]
RECIPES = {path.stem: path for path in sorted((PACKAGE / "recipes").iterdir()) if path.suffix in (".py", ".ipynb")}


def blocks(page: Path) -> list[Example]:
    return list(Sybil(parsers=[PythonCodeBlockParser()]).parse(page).examples())


def compiled(source: str, path: Path, line: int = 0) -> CodeType:
    """The source as code whose tracebacks name the lines of the file, from `line` on."""
    code = compile("\n" * line + source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    return code


def recipe(name: str) -> Path:
    """The recipe of that name; where its framework is not installed, who asks for it is skipped."""
    for statement in ast.parse(source_of(name)).body:
        if isinstance(statement, ast.ImportFrom):
            package(str(statement.module))
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                package(alias.name)
    return RECIPES[name]


def source_of(name: str) -> str:
    """The Python of a recipe, of all cells where it is a notebook."""
    text = RECIPES[name].read_text()
    if RECIPES[name].suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def waiting_for_callbacks(source: str) -> str:
    """The source of a recipe whose session looks at nothing unless a callback says so, for another process."""
    assert source.count("Flux2Session(") == 1
    return source.replace("Flux2Session(", "Flux2Session(polling=__import__('flux2_async').Polling(interval=1000.0), ")


def imported(path: Path) -> dict[str, Any]:
    """Run a recipe as a module that is imported, and give its names."""
    # Some libraries look up the module of a function.
    module = sys.modules["app"] = ModuleType("app")
    exec(compiled(path.read_text(), path), vars(module))  # noqa: S102  running the recipe is the purpose
    return vars(module)
