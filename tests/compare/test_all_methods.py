"""`--methods all`: those that apply to the model and the data; why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_init import GHN, METHODS, GHNConfig, Report, apply
from ghn_init.cli.main import main
from ghn_init.compare import FineTuning, Point, Split, compare
from ghn_init.compare.choice import choose
from ghn_init.methods import Job, Method, Variant, register
from ghn_init.methods.method import NEEDS

LONG = ("gradinit", "nio", "metainit")
"""Methods that take many steps by default."""


@pytest.fixture(autouse=True)
def methods(registered: dict[str, Method]) -> None:
    """Two of a third party: one that fails, and one that finds nothing to do."""

    def fails(job: Job) -> dict[str, torch.Tensor]:
        return {name: torch.full(job.graph.shapes[name], torch.nan) for name in job.layers}

    register(Method("failing", fails))
    register(Method("idle", lambda job: {}))


@pytest.fixture
def hypernetwork() -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 1000), "seeded").eval()


def test_every_method_is_tried(build: Callable[..., Any], hypernetwork: GHN) -> None:
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    tried: list[str] = []

    def attempt(variant: Variant, loaded: Mapping[str, GHN]) -> Report:
        tried.append(variant.label)
        arch, given = variant.method.hypernetwork, {"images": images, "labels": labels}
        return apply(
            build()(0), variant, ghn=loaded[arch] if arch else None, example_inputs=images[:2],
            **{name: given[name] for name in variant.needs}, return_report=True,
        )[1]  # fmt: skip

    found = choose(hypernetwork, lambda _: NEEDS[:2], ["front"], attempt)
    names = [variant.name for variant in found.variants]
    assert names[0] == "rand"
    assert {"rand", "orth", "ghn3", "ghn3-orth", "lsuv", *LONG} <= set(names)
    assert set(names) | set(found.left_out) == set(METHODS) - {"front"}
    assert [variant.label for variant in found.variants] == names  # with all their steps
    assert {"gradinit:steps=1", "nio:steps=1", "metainit:steps=1"} <= set(tried)
    assert found.hypernetworks == (hypernetwork,)
    assert found.left_out["ghn2"] == "no ghn2 checkpoint is given"
    assert "needs source" in found.left_out["select"]
    assert "failing gives values for" in found.left_out["failing"]
    assert found.left_out["idle"].startswith("it leaves everything: kept by method idle")


def test_compare_all(
    build: Callable[..., Any], data: Split, hypernetwork: GHN, tmp_path: Path
) -> None:
    quick = [f"{name}:steps=1,batch=8" for name in LONG]
    arguments = (data, FineTuning(2, 8), [Point(1e-2)])
    more = {"seeds": 1, "ghn": hypernetwork, "results": tmp_path / "runs.json"}
    result = compare(build(), [*quick, "ghn3-orth+lsuv", "all"], *arguments, **more)
    labels = [row.method for row in result.rows]
    assert labels[:5] == [*quick, "ghn3-orth+lsuv", "rand"]
    assert not {*LONG} & set(labels)
    assert {"orth", "lsuv", "ghn3", "ghn3-orth"} <= set(labels)
    lines = result.table().splitlines()
    assert "left out: ghn2: no ghn2 checkpoint is given" in lines
    header = next(line for line in lines if line.startswith("method"))
    assert header.split()[-2:] == ["init", "(s)"]
    assert all(row.initializing < 0.1 + max(o.seconds for o in row.outcomes) for row in result.rows)
    again = compare(build(), [*quick, "all"], *arguments, **more)
    assert again.rows == (*result.rows[:3], *result.rows[4:])  # nothing was run anew


def test_command(
    models: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
    registered: dict[str, Method],
) -> None:  # fmt: skip
    for name in (*LONG, "mimetic", "ghn2", "ghn2-orth", "ghn3", "ghn3-orth"):
        del registered[name]
    command = ["compare", f"{models}:small", "--data", str(image_folder), "--image-size", "16"]
    command += ["--device", "cpu", "--batch-size", "8", "--steps", "2", "--seeds", "1"]
    assert main([*command, "--methods", "all"]) == 0
    printed = capsys.readouterr().out
    assert "left out: select: method 'select' needs source" in printed
    assert [line.split()[0] for line in printed.splitlines() if "0.01" in line] == [
        *("rand", "orth", "lsuv"),
    ]
