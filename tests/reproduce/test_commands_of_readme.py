"""The commands in examples/reproduce/README.md: every script is there, and takes what is shown."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from ghn_init.cli import main as cli

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reproduce"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SHARED = ("experiment", "networks", "training_runs")


class ParsedError(Exception):
    """The arguments are known."""


@pytest.fixture(autouse=True)
def stop_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object) -> NoReturn:
        parse(parser, *given)  # type: ignore[call-overload]
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def commands(start: str) -> list[list[str]]:
    """Of the blocks and of the table."""
    block = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    found = [
        *block.splitlines(),
        *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S)),
    ]
    return [shlex.split(line) for line in found if line.startswith(start)]


def test_every_script_has_its_command() -> None:
    shown = {Path(command[1]).stem for command in commands("python examples/reproduce/")}
    assert shown == {path.stem for path in FOLDER.glob("*.py")} - {*SHARED}


def test_the_scripts_take_what_is_shown(start: Callable[..., str]) -> None:
    found = commands("python examples/reproduce/")
    assert len(found) >= 5
    for _, script, *arguments in found:
        with pytest.raises(ParsedError):
            start(Path(script).stem, *arguments)


def test_the_commands_take_what_is_shown() -> None:
    found = commands("ghn-init ")
    assert len(found) >= 4
    for _, *arguments in found:
        with pytest.raises(ParsedError):
            cli.main(arguments)
