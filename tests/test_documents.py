"""The README and the guide: every Python block runs, on the emulator and on virtual time; links lead somewhere."""

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from documents import PACKAGE, PAGES, README, RECIPES, blocks, compiled
from sybil import Example

import flux2_async
from flux2_async import Flux2Session, TextToImage
from flux2_async.cli.documents import docs
from flux2_async.emulator import Emulator, Plan, Script

GUIDE = PACKAGE / "guide"
PLACE = re.compile(r"\]\(([a-z]+\.md)#([^)]+)\)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def shown_blocks() -> list[Any]:
    return [pytest.param(page, block, id=f"{page.name}:{block.line}") for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize(("page", "example"), shown_blocks())
async def test_block(page: Path, example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block runs as it stands, with the names that the text around it speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PACKAGE / "cli" / "photos" / "coffee.png", "can.png")
    script = Script(plans=Plan(duration=8.0), render=False)
    async with Emulator(script) as emulator:
        monkeypatch.setenv("APIKLEY_API_KEY", emulator.api_key)
        monkeypatch.setenv("APIKLEY_BASE_URL", emulator.base_url)
        async with Flux2Session() as flux:
            request = TextToImage("a red kettle on a slate worktop")
            names: dict[str, Any] = {
                **{name: getattr(flux2_async, name) for name in ("Flux2Session", "ImageToImage", "TextToImage")},
                "flux": flux,
                "request": request,
                "task_id": (await flux.submit(request)).id,
            }
            pending = eval(compiled(str(example.parsed), page, example.line), names)  # noqa: S307  running the README is the purpose
            if inspect.isawaitable(pending):
                await pending


def test_there_are_blocks() -> None:
    """The README and the guide show Python, so the test above has something to run."""
    assert len(shown_blocks()) >= 20


def test_the_readme_shows_a_recipe() -> None:
    """Its program is the recipe `first`, which a test runs from end to end."""
    program = RECIPES["first"].read_text().split('"""', 2)[2]
    assert [str(block.parsed).strip() for block in blocks(README)] == [program.strip()]


def places(page: Path) -> set[str]:
    """What can be linked to on a page: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short_and_lead_somewhere(page: Path) -> None:
    """A page is read in one go, says first what it is about, and its links lead to what is there."""
    text = page.read_text()

    assert len(text) <= (9000 if page == README else 8000)
    assert re.match(r"# .+\n\n[A-Z].+\n", text)
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
    assert [link for link in PLACE.findall(text) if link[1] not in places(page.parent / link[0])] == []


def test_every_page_and_recipe_is_listed() -> None:
    """Agents find every page with its first sentence, people find it in the README, and recipes on their page."""
    pages = [page for page in PAGES if page != README]
    lines = [line for line in (GUIDE / "llms.txt").read_text().splitlines() if line.startswith("- ")]
    expected = [
        f"- [{title[2:]}]({page.name}): {about}"
        for page in pages
        for title, _, about, *_ in [page.read_text().splitlines()]
    ]
    listed = re.findall(r"`([a-z]+)`", (GUIDE / "recipes.md").read_text().partition("| --- |")[2])

    assert sorted(lines) == sorted(expected)
    assert {page.name for page in pages} <= {Path(link).name for link in LINK.findall(README.read_text())}
    assert RECIPES.keys() <= {*listed}


def test_recipes_that_are_spoken_of_exist() -> None:
    """What `flux2 recipe` and `flux2 docs` are shown with is there."""
    texts = [page.read_text() for page in PAGES]
    names = {name for text in texts for name in re.findall(r"flux2 docs ([A-Za-z0-9_.]*[a-z])", text)}

    assert {name for text in texts for name in re.findall(r"flux2 recipe ([a-z]+)", text)} <= RECIPES.keys()
    assert len(names) >= 6
    assert [name for name in names if docs(name) != 0] == []
