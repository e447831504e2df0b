"""The report of a batch: one page to look at, with everything in it but the pictures.

A prompt is hostile text, and so is every other word in here. The rows travel as JSON inside a data block, the page's
script writes them as text only, and its Content-Security-Policy allows nothing but that script, that style sheet and
pictures that lie beside it.
"""

import base64
import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flux2_async._http.atomic_file import replacing
from flux2_async._shown.local_page import SCRIPT, STYLE
from flux2_async.batch.outcomes import Outcome
from flux2_async.batch.report.rows import link_to, report_row
from flux2_async.batch.report.thumbnails import Thumbnails

if TYPE_CHECKING:
    from jinja2 import Template

NAME: Final = "report.html"
PAGE: Final = Path(__file__).with_name("page")
MISSING: Final = 'the report needs the extra "cli"; install it with: pip install "flux2-async[cli]"'


def write_report(
    outcomes: Iterable[Outcome], directory: str | os.PathLike[str], *, title: str = "Flux-2 batch"
) -> Path:
    """Write `report.html` and the thumbnails it shows; blocks, the longer the more pictures are new.

    The page needs no network and no server. Beside it have to stay the pictures and the folder `thumbnails`. It
    appears whole or not at all; the one from before stays until then.

    Example:
        async with Journal("run.db") as journal:
            outcomes = [outcome async for outcome in journal.outcomes()]
        write_report(outcomes, "results")

    Args:
        outcomes: What to show, in the order of the input; read once and one by one.
        directory: The folder of the batch, which `Outcome.files` are relative to.
        title: Its headline.

    Returns:
        Where it is.

    Raises:
        ImportError: The extra `cli` is missing; the text says how to install it.
        OSError: The folder cannot be written to.
    """
    template = _template()
    folder = Path(directory).resolve()

    def known(path: Path) -> dict[str, str | None]:
        return {"href": link_to(path, folder), "thumb": thumbnails.make(path)}

    with Thumbnails(folder) as thumbnails:
        content = template.generate(
            rows=(report_row(outcome, folder, known) for outcome in outcomes),
            title=title,
            written=_now(),
            events="",
            **_assets(),
        )
        with replacing(folder / NAME) as file:
            file.writelines(text.encode("utf-8", "replace") for text in content)
        thumbnails.forget_others()
    return folder / NAME


def served_page(title: str) -> tuple[str, str]:
    """Give the page without rows, for a server that sends them as `events`, and its Content-Security-Policy."""
    assets = _assets(live=True)
    policy = (
        f"default-src 'none'; script-src '{assets['script_hash']}'; style-src '{assets['style_hash']}'; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return _template().render(rows=(), title=title, written=_now(), events="./events", **assets), policy


def _template() -> "Template":
    try:
        from jinja2 import Environment, FileSystemLoader  # noqa: PLC0415  comes with the extra
    except ModuleNotFoundError as missing:
        raise ImportError(MISSING) from missing
    # The worker would only say that it has ended.
    if find_spec("PIL") is None:
        raise ImportError(MISSING)
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("report.html.jinja")


def _assets(*, live: bool = False) -> dict[str, Any]:
    """Give script and style sheet as they are, and the hashes by which the page's policy knows them."""
    from markupsafe import Markup  # noqa: PLC0415  comes with Jinja2

    assets: dict[str, Any] = {}
    # One script to the browser, in this order.
    names = ("rows", "grid", "viewer", "controls", *(["live"] if live else []), "start")
    scripts = [SCRIPT, *(PAGE / f"{name}.js" for name in names)]
    for kind, files in (("style", [STYLE, PAGE / "report.css"]), ("script", scripts)):
        text = "".join(file.read_text("utf-8") for file in files)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assets[kind] = Markup(text)  # noqa: S704  part of this package
        assets[f"{kind}_hash"] = f"sha256-{digest}"
    return assets


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
