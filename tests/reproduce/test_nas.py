"""examples/reproduce/nas.py: Kendall's tau on tiny data, at both scales."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_direct import PAPER, SMALL

pytest.importorskip("scipy", reason="Kendall's tau needs the extra [plot]")

Start = Callable[..., str]


def test_small_scale(
    start: Start, small_images: Path, out: Path, nothing_is_computed: Callable[[], None]
) -> None:
    command = ("nas", "--data", small_images, "--out", out, *SMALL)
    first = start(*command)
    ranking = json.loads((out / "nas.json").read_text())["rankings"]["SGD-1ep"]
    kendalltau = pytest.importorskip("scipy.stats").kendalltau
    for metric, scores in ranking["scores"].items():
        names = list(scores)
        tau = kendalltau([ranking["accuracies"][n] for n in names], list(scores.values())).statistic
        assert ranking["tau"][metric] == (None if tau != tau else pytest.approx(tau)), metric
    assert {"embedded", "plain", "synflow-bn", "random"} <= set(ranking["scores"])
    nothing_is_computed()
    assert start(*command) == first
    assert "paper (Table 13, PyTorch): ghn3xlm16 0.34" in first.splitlines()[-1]


def test_tau_by_chance(script: Callable[[str], ModuleType]) -> None:
    """Over all orders of five networks, and over random ones of 26."""
    kendalltau = pytest.importorskip("scipy.stats").kendalltau
    kendalltau = functools.partial(kendalltau, method="asymptotic")  # else it counts orders
    orders = list(itertools.permutations(range(5)))
    taus = [kendalltau(range(5), order).statistic for order in orders]
    by_chance = script("nas").by_chance
    assert by_chance(5) == pytest.approx(statistics.pstdev(taus))
    random = np.random.default_rng(0)
    taus = [kendalltau(range(26), random.permutation(26)).statistic for _ in range(400)]
    assert by_chance(26) == pytest.approx(statistics.pstdev(taus), rel=0.1)


def test_documented_accuracies(script: Callable[[str], ModuleType], shared: Path) -> None:
    """Those of PyTorch's documentation are the SOTA of the authors' table, for all its models."""
    lines = (shared / "published" / "ghn3_results.jsonl").read_text().splitlines()
    published = {name: row for line in lines for name, row in json.loads(line).items()}
    documented = script("nas").documented
    assert len(published) == 74
    for name, row in published.items():
        assert documented(name) == pytest.approx(float(row["randinit-sota"]), abs=0.01), name


@pytest.mark.slow
def test_paper_scale(start: Start, large_images: Path, seeded: list[Path], tmp_path: Path) -> None:
    printed = start("nas", "--data", large_images, "--out", tmp_path, "--ghn", *seeded, *PAPER)
    rankings = json.loads((tmp_path / "nas.json").read_text())["rankings"]
    assert set(rankings) == {"SGD-1ep", "SOTA"}
    assert rankings["SOTA"]["accuracies"]["squeezenet1_1"] == pytest.approx(58.178)
    assert {"ghn3tm8", "ghn3xlm16"} <= set(rankings["SOTA"]["scores"])
    assert "ghn3xlm16" in printed
