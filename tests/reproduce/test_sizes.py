"""examples/reproduce/sizes.py: the sizes of Table 1, and the time of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]


def test_the_sizes_are_those_of_the_paper(script: Script) -> None:
    """To a digit less than it gives: it rounds GHN-2's 2.32 and the MLP's 6.75."""
    sizes = script("sizes")
    for name, (millions, _) in sizes.PAPER.items():
        assert sizes.parameters(name) == pytest.approx(millions, rel=0.01), name
    assert round(sizes.parameters("GHN-3-XL"), 1) == 654.4
    assert round(sizes.parameters("GHN-3-L"), 1) == 214.7


def test_days_and_ratios(script: Script) -> None:
    """A second a step for 750,675 steps are 8.69 days; smaller steps say nothing of days."""
    sizes = script("sizes")
    millions = dict.fromkeys(sizes.PAPER, 1.0)
    times = {"GHN-3-T": 1.0, "GHN-3-S": 1.5}
    whole, small = sizes.Sizes(millions, times, True), sizes.Sizes(millions, times)
    assert whole.days("GHN-3-T") == pytest.approx(8.688, abs=1e-3)
    assert whole.days("GHN-2") is None
    assert small.days("GHN-3-T") is None
    assert small.relative("GHN-3-S") == 1.5
    row = next(line for line in whole.table().splitlines() if line.startswith("GHN-3-S"))
    assert row.split() == ["GHN-3-S", "1.00", "35.8", "1.5", "13.03", "1.5", "3.8", "1.027"]


def test_small_scale(start: Callable[..., str], script: Script, tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    command = ("sizes", "--out", tmp_path, "--sizes", "GHN-3-T", "--steps", 1, "--device", "cpu")
    first = start(*command)
    assert json.loads((tmp_path / "sizes.json").read_text())["seconds"]["GHN-3-T"] > 0
    assert "paper (Table 1): 2.3, 6.9, 35.8, 214.7, 654.4, 6.74" in first.splitlines()[-1]

    def again(*_: object) -> float:
        raise AssertionError("it is timed again")

    monkeypatch.setattr(script("sizes"), "seconds_per_step", again)
    assert start(*command) == first
