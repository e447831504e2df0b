"""The contract's OpenAPI document held against the emulator, in a pytest of its own.

What makes the cases takes as long to load and to collect as all other modules, in each process that collects them.
"""

import subprocess
import sys
from pathlib import Path

from programs import package

CASES = Path(__file__).parent.parent / "openapi_cases.py"
# What aiohttp warns of is a header that was made up.
OPTIONS = (
    "-n 0 -p no:cacheprovider -p schemathesis.pytest.plugin "
    "-W ignore::aiohttp.BadContentDispositionHeader -W ignore::aiohttp.BadContentDispositionParam"
)


def test_the_emulator_answers_as_the_document_says() -> None:
    """Both tests pass for each of the document's seven operations; which one does not is in the output."""
    package("schemathesis")
    command = [sys.executable, "-m", "pytest", *OPTIONS.split(), str(CASES)]
    done = subprocess.run(  # noqa: S603  our own words
        command, cwd=CASES.parent.parent, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 passed" in done.stdout
