"""Settings: their rules, and the options that commands make of them."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from ghn_init import GHNInitError
from ghn_init.cli.options import add_options, from_options
from ghn_init.settings import Count, OneOf, Positive, Range, Share, check


@dataclass(frozen=True)
class Size:
    """A size.

    Arguments:
        width, height: in pixels.
    """

    width: Count = 3
    height: Count = 4


@dataclass(frozen=True)
class Painting:
    """What is painted.

    Arguments:
        title: in one word, not
            in two: `like this`.
        colors: of the palette, 100% of them.
        kind: of paint.
        size: of the canvas.
        thinner: share of it.
        limit: of the time, in hours.
        framed: put a frame around it.
    """

    title: str
    colors: Annotated[tuple[int, ...], Range(1)] = (1, 2)
    kind: Annotated[str, OneOf(("oil", "chalk"))] = "oil"
    size: Size = field(default_factory=Size)
    thinner: Share = 0.5
    limit: Positive | None = None
    framed: bool = False

    def __post_init__(self) -> None:
        check(self)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made, Painting, skip=("kind",))
    return made


def test_options_are_the_fields_of_the_settings() -> None:
    given = ["--title", "sea", "--colors", "3", "--width", "7", "--framed"]
    given += ["--thinner", "0.25", "--limit", "2"]
    found = from_options(Painting, parser().parse_args(given), kind="chalk")
    assert found == Painting("sea", (3,), "chalk", Size(7, 4), 0.25, 2.0, True)
    assert from_options(Painting, parser().parse_args(["--title", "sea"])) == Painting("sea")


def test_help_is_what_the_docstring_says() -> None:
    text = " ".join(parser().format_help().split())
    assert "--title TEXT in one word, not in two: like this --colors" in text
    assert "--colors N [N ...] of the palette, 100% of them (default: 1 2)" in text
    assert "--height N in pixels (default: 4)" in text
    assert "--limit X of the time, in hours --framed put a frame around it" in text


def test_a_field_without_a_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([])
    assert "--title" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": (1, 0)}, "colors is 0: give 1 or more"),
        ({"colors": ()}, "colors is empty"),
        ({"kind": "water"}, "kind is 'water': give oil or chalk"),
        ({"thinner": 1.5}, "thinner is 1.5: give a number from 0 to 1"),
        ({"thinner": math.nan}, "thinner is nan"),
        ({"limit": 0}, "limit is 0: give more than 0"),
        ({"limit": math.inf}, "limit is inf"),
        ({"colors": (1.5,)}, "colors is 1.5"),
        ({"colors": (True,)}, "colors is True"),
        ({"framed": 1}, "framed is 1: give a bool"),
        ({"title": None}, "title is None: give a str"),
    ],
)
def test_values_that_a_field_cannot_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(GHNInitError, match=message):
        Painting(**{"title": "sea", **changes})  # type: ignore[arg-type]


def test_help_of_a_command_with_many_options_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom ghn_init.cli.main import main\n"
        "try: main(['train', 'run', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "--save-every N steps between two checkpoints (default: 250)" in " ".join(
        done.stdout.split()
    )
    assert done.stdout.endswith("False\n")
