"""The table and the picture, from runs that are written down here."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from ghn_init import GHNInitError
from ghn_init.compare import Comparison, FineTuning, Outcome, Point, Row
from ghn_init.compare.differences import half_width

POINT, OTHER = Point(1e-3), Point(4e-3, 0.1)


def outcome(*accuracies: float, predicted: float = 0.0, diverged_at: int | None = None) -> Outcome:
    return Outcome(
        tuple((50 * i, a) for i, a in enumerate(accuracies, 1)), diverged_at, predicted, 1.5, 0.5
    )


def comparison() -> Comparison:
    rand = (outcome(30, 41, 52), outcome(30, 39, 50), outcome(30, 42, 54))
    ghn = (outcome(45, 55, 61, predicted=0.9993), outcome(38, 55, 63, predicted=0.9993))
    rows = (
        Row("rand", POINT, rand, {POINT: 40.0, OTHER: None}),
        Row("ghn3", OTHER, (*ghn, outcome(44, predicted=0.9993, diverged_at=57)), {POINT: 1.0}),
        Row("ghn3:noise=0", OTHER, (outcome(diverged_at=1),) * 3, {}),
    )
    how = FineTuning(150, eval_every=50)
    checkpoints = ("ghn3tm8 (sha256 0123456789ab)",)
    return Comparison("resnet18", how, (1000, 500, 2000), 10, checkpoints, (40, 60), rows)


def test_table() -> None:
    assert comparison().table().splitlines() == [
        "resnet18: 1000 images of 10 classes, 150 steps of 64 (9.6 epochs), adamw, fp32",
        "accuracy in percent on 2000 test images, 3 seeds",
        "lr and decay: for each method the best of 2 on 500 training images that are held out",
        "checkpoint ghn3tm8 (sha256 0123456789ab)",
        "to x%: median steps, looked at every 50; -: not reached",
        "diverged: runs that ended with a loss or outputs that are not finite; accuracy and std "
        "are those of the others",
        "method        predicted     lr  decay  accuracy  std  to 40%  to 60%  init (s)  diverged",
        "rand                  -  0.001   0.01      52.0  2.0     100       -       0.5         -",
        "ghn3              99.9%  0.004    0.1      62.0  1.4      50     150       0.5    1 of 3",
        "ghn3:noise=0          -  0.004    0.1  diverged    -       -       -       0.5    3 of 3",
        "difference in points, paired by seed, with its 95% confidence interval:",
        "  ghn3 - rand: +11.0 +- 25.4, better in 2 of 2 seeds",
        "  ghn3:noise=0 - rand: no seed in which both ended well",
    ]


def test_differences_are_paired_by_seed() -> None:
    """Against the textbook's formula: 4.303 is Student's t of two degrees of freedom."""
    rand = Row("rand", POINT, (outcome(50), outcome(60), outcome(70)), {})
    better = Row("better", POINT, (outcome(51), outcome(63), outcome(72)), {})
    result = replace(comparison(), rows=(rand, better))
    (difference,) = result.differences()
    assert difference.mean == pytest.approx(2.0)
    assert difference.half_width == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    assert (difference.wins, difference.seeds, difference.is_clear) == (3, 3, False)
    (other,) = result.differences("better")
    assert (other.mean, other.wins) == (-2.0, 0)
    assert str(other) == "rand - better: -2.0 +- 2.5, better in 0 of 3 seeds"
    with pytest.raises(GHNInitError, match="no method 'worse' was compared: there are rand, b"):
        result.differences("worse")


def test_intervals_are_those_of_student_t() -> None:
    assert half_width([1.0]) is None
    assert half_width([0.0, 2.0]) == pytest.approx(12.706)
    many = [float(i % 2) for i in range(100)]  # of so many, the normal distribution's 1.96 serves
    assert half_width(many) == pytest.approx(1.96 * statistics.stdev(many) / 10)


def test_a_table_without_choice_accuracies_to_reach_and_divergence() -> None:
    whole = comparison()
    row = replace(whole.rows[0], outcomes=whole.rows[0].outcomes[:1], choice={})
    text = replace(whole, rows=(row,), reach=(), checkpoints=()).table()
    assert text.splitlines()[1:] == [
        "accuracy in percent on 2000 test images, 1 seed",
        "method  predicted     lr  decay  accuracy  std  init (s)",
        "rand            -  0.001   0.01      52.0    -       0.5",
    ]


def test_median_steps_count_runs_that_never_get_there() -> None:
    rand, ghn, _ = comparison().rows
    assert rand.steps_to(51) == 150
    assert rand.steps_to(53) is None
    assert replace(rand, outcomes=rand.outcomes[:2]).steps_to(51) is None
    assert replace(ghn, outcomes=ghn.outcomes[:2]).steps_to(40) == 75


def test_json() -> None:
    content = json.loads(comparison().to_json())
    assert content["images"] == {"train": 1000, "validation": 500, "test": 2000}
    rand, _, ablated = content["methods"].values()
    assert rand["mean"] == 52
    assert rand["std"] == 2
    assert rand["steps_to"] == {"40": 100, "60": None}
    assert rand["choice"][1] == {"lr": 4e-3, "weight_decay": 0.1, "accuracy": None}
    assert rand["runs"][0]["curve"] == [[50, 30], [100, 41], [150, 52]]
    assert ablated["diverged"] == 3
    assert ablated["mean"] is None
    assert content["differences"][0]["mean"] == 11


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    axes = comparison().plot().axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["rand", "ghn3 (1 of 3 diverged)", "ghn3:noise=0 (3 of 3 diverged)"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["rand"].get_ydata() == pytest.approx([30, 122 / 3, 52])
    assert lines["ghn3 (1 of 3 diverged)"].get_ydata() == pytest.approx([41.5, 55, 62])
    comparison().save(tmp_path / "curves.svg")
    first = (tmp_path / "curves.svg").read_bytes()
    comparison().save(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_bytes() == first


def test_schedule() -> None:
    how = FineTuning(200)
    rates = [how.learning_rate(2.0, step) for step in range(200)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2
    assert rates[105] == pytest.approx(1)
    assert rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert how.evaluations() == tuple(range(20, 201, 20))
    assert FineTuning(10, eval_every=4).evaluations() == (4, 8, 10)
    assert FineTuning(3).evaluations() == (1, 2, 3)
    assert FineTuning(1).learning_rate(2.0, 0) == 2
    assert math.isinf(outcome(10, 20).reached(30))
