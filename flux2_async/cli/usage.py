"""The words of the command line, and what to do about those that the parser does not understand."""

import re
from collections.abc import Sequence
from contextvars import ContextVar
from shlex import quote
from typing import Final

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

GIVEN: Final[ContextVar[tuple[str, ...]]] = ContextVar("given", default=())
"""The words after `flux2`."""

# What looks like one with a misspelt name; other words with a dash in front are more likely meant as a prompt.
OPTION: Final = re.compile(r"--[a-z][a-z-]*(=.*)?", re.DOTALL)


def misunderstood(error: CycloptsError) -> str:
    """Say in one line what was not understood."""
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.unused_tokens[0].startswith("-"):
        return f'Unknown option: "{error.unused_tokens[0]}".'
    return str(error)


def advice(error: CycloptsError, arguments: Sequence[str]) -> str:
    """Tell in one line what to do about the words after `flux2`."""
    words = ["flux2", *(error.command_chain or ())]
    return "; ".join(filter(None, (_way_out(error, arguments, " ".join(words)), f"see {' '.join(words)} --help")))


def _way_out(error: CycloptsError, arguments: Sequence[str], command: str) -> str:
    ends = arguments.index("--") if "--" in arguments else len(arguments)
    prompting = command in ("flux2 edit", "flux2 generate")
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        if word in arguments[ends:]:
            return "behind -- there are no options, so put them before it"
        if prompting and not OPTION.fullmatch(word):
            images = " PICTURE" * (command == "flux2 edit")
            return (
                f"a prompt that begins with - goes behind --, and options before it: {command} -- {quote(word)}{images}"
            )
    if isinstance(error, UnusedCliTokensError) and prompting:
        return "a prompt of several words goes in quotes"
    option = error.keyword if isinstance(error, MissingArgumentError) else None
    if option is not None and option in arguments[:-1]:
        return f"a value that begins with - is joined to its option: {option}{'=' * option.startswith('--')}VALUE"
    return ""
