"""What `flux2` says about words that it cannot follow."""

import pytest

from flux2_async import ImageToImage
from flux2_async.cli.app import run


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--foo"], 'flux2: Unknown option: "--foo"; see flux2 --help\n'),
        (["foo"], 'flux2: Unknown command "foo".'),
    ],
)
def test_words_by_their_name(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    """An option is called an option, and by the name that was typed."""
    assert run(words) == 2
    assert capsys.readouterr().err.startswith(reason)


def test_help_says_where_python_takes_another_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """An edited picture keeps its shape by the command, and is what the API takes unless told in Python."""
    default = ImageToImage("make it winter", images=["house.png"]).aspect_ratio
    assert run(["edit", "--help"]) == 0
    assert f"auto with pictures (in Python {default})" in " ".join(capsys.readouterr().out.replace("│", " ").split())
