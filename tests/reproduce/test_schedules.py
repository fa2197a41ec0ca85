"""examples/reproduce/schedules.py: its figures, and how it starts train.py and goes on."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from timm.utils import update_summary

import ghn_init
from ghn_init.compare import Point

Script = Callable[[str], ModuleType]
Start = Callable[..., str]

TRAIN = """
import csv, json, os, sys
folder = os.path.join(sys.argv[sys.argv.index("--output") + 1],
                      sys.argv[sys.argv.index("--experiment") + 1])
os.makedirs(folder, exist_ok=True)
epochs = int(sys.argv[sys.argv.index("--epochs") + 1])
last = os.path.join(folder, "last.pth.tar")
begun = int(open(last).read()) if "--resume" in sys.argv else 0
with open("commands.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
with open(os.path.join(folder, "summary.csv"), "a", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"])
    for epoch in range(begun, epochs):
        writer.writerow([epoch, 1.0, 1.0, 10 * epoch + 5.5, 90.0, 0.1])
        if not begun:  # it is killed after the first epoch
            open(last, "w").write(str(epoch + 1))
            sys.exit(3)
"""
"""In the place of timm's: it ends after an epoch, and goes on to the end when it is resumed."""


@pytest.fixture
def train_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_best_point(script: Script) -> None:
    """By the accuracy at the end, and not by the highest; a run that diverged is never it."""
    best, points = script("training_runs").best, [Point(rate) for rate in (0.1, 0.2, 0.3)]
    curves = [[50.0, 40.0], [10.0, 45.0], [99.0]]
    tried = dict(zip(points, curves, strict=True))
    assert best(tried, 2) == points[int(np.argmax([c[-1] if len(c) == 2 else -1 for c in curves]))]
    assert best({points[0]: [], points[1]: [1.0, 2.0]}, 2) == points[1]


def test_summary_of_a_run_that_was_stopped(script: Script, tmp_path: Path) -> None:
    """Written by timm's own function, as train.py calls it."""
    path, accuracies = tmp_path / "summary.csv", [11.5, 20.25, 33.0, 41.0]
    for epoch, header in ((0, True), (1, False), (2, False), (2, True), (3, False)):
        top1 = 1.0 if header and epoch == 0 else accuracies[epoch]
        top1 = accuracies[0] if epoch == 0 else top1
        if epoch == 2 and not header:
            top1 = -5.0  # not saved, and made again
        update_summary(epoch, {"loss": 1.0}, {"loss": 2.0, "top1": top1}, path, 0.1, header)
    assert script("training_runs").read_summary(path) == accuracies
    assert script("training_runs").read_summary(tmp_path / "none.csv") == []


def test_small_scale(start: Start, script: Script, small_images: Path, tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    command = ("schedules", "--data", small_images, "--out", tmp_path, "--seeds", 2, "--epochs", 2,
               "--starts", "RandInit", "embedded", "--images", 0, 0,
               "--batch-size", 30)  # fmt: skip
    first = start(*command)
    found = json.loads((tmp_path / "schedules.json").read_text())["found"]["resnet10t"]
    assert list(found) == ["RandInit", "embedded"]
    row = next(line for line in first.splitlines() if line.startswith("embedded"))
    for epoch in (0, 1):
        ours = np.array([curve[epoch] for curve in found["embedded"]["curves"]])
        assert f"{ours.mean():.1f} ± {ours.std(ddof=1):.1f}" in row
    assert "paper (Table 6, ResNet-50, 1 and 90 epochs): RandInit 20.6" in first.splitlines()[-1]

    # The files hold what `apply` gives, for the seed.
    model, _ = ghn_init.create_model("resnet10t", "timm", 10, seed=1)
    example = torch.empty(2, 3, 32, 32, device="meta")
    ghn_init.apply(model, "ghn3", ghn="embedded", seed=1, example_inputs=example)
    saved = load_file(tmp_path / "weights" / "resnet10t-embedded-1.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())

    # Nothing is done again.
    for name in ("fine_tune", "diagnose"):
        monkeypatch.setattr(script("training_runs"), name, None)
    monkeypatch.setattr(script("training_runs").ghn_init, "export", None)
    assert start(*command) == first


def test_variance_by_depth(script: Script, small_images: Path, tmp_path: Path) -> None:
    """Of each convolution's output over 32 images, with the statistics of the batch."""
    runs, data = script("training_runs"), script("schedules").load_split(str(small_images), 32)
    small = script("schedules").PROTOCOLS["small"]
    options = script("argparse").Namespace(out=tmp_path, device="cpu")
    own = runs.Runs(small.recipes[0], small, data, options)
    rand = runs.Start("RandInit", "rand")
    own.seconds(rand, 0)
    variance = own.variance(rand)

    model = own.model(0)
    load_model(model, tmp_path / "weights" / "resnet10t-RandInit-0.safetensors")
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(
                lambda _, __, y, name=name: expected.update({f"{name}.weight": y.numpy().var()})
            )
    with torch.no_grad():
        model.train()(own.batch(32).images)
    assert variance == pytest.approx(expected, rel=1e-4)
    assert len(variance) > 10


def test_paper_scale_needs_the_script(start: Start, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    command = ("schedules", "--scale", "paper", "--data", tmp_path, "--out", tmp_path)
    for more, message in (
        ((), "give its path, --train-script"),
        (("--train-script", tmp_path / "none.py"), "there is no such file"),
    ):
        with pytest.raises(SystemExit):
            start(*command, *more)
        assert message in capsys.readouterr().err


def test_it_starts_train_py_and_goes_on(
    start: Start, small_images: Path, train_script: Path, tmp_path: Path
) -> None:
    command = ("schedules", "--data", small_images, "--out", tmp_path / "out", "--seeds", 1,
               "--epochs", 3, "--starts", "RandInit", "--device", "cpu",
               "--train-script", train_script, "--train-args", "--workers 0")  # fmt: skip
    with pytest.raises(ghn_init.GHNInitError, match="status 3 after 1 of 3 epochs"):
        start(*command)
    printed = start(*command)
    first, second = map(json.loads, (tmp_path / "commands.jsonl").read_text().splitlines())
    assert "--resume" not in first
    assert second == [*first, "--resume", option(second, "--resume")]
    weights = Path(option(first, "--initial-checkpoint"))
    assert weights.name == "resnet10t-RandInit-0.safetensors"
    assert weights.exists()
    for name, value in (("--epochs", "3"), ("--batch-size", "32"), ("--num-classes", "10"),
                        ("--val-split", "test"), ("--lr", "0.02"), ("--workers", "0")):  # fmt: skip
        assert option(first, name) == value
    row = next(line for line in printed.splitlines() if line.startswith("RandInit"))
    assert row.split()[-7:] == ["5.5", "15.5", "25.5", "0.2", "20.6", "67.3", "76"]
    assert start(*command) == printed
    assert len((tmp_path / "commands.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ghn_init.GHNInitError, match="was computed with other settings"):
        start(*command[:-1], "--workers 1")


@pytest.mark.slow
def test_paper_scale(start: Start, large_images: Path, published: None, tmp_path: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Checkpoints from a Hub on this machine; ResNet-50, with a stand-in for train.py."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("if not begun", "if False"))
    printed = start(
        "schedules", "--scale", "paper", "--data", large_images, "--out", tmp_path / "out",
        "--device", "cpu", "--seeds", 1, "--models", "resnet50", "--starts", "RandInit", "ghn2",
        "ghn3xlm16", "--train-script", script,
    )  # fmt: skip
    commands = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    tried = [(Path(option(c, "--initial-checkpoint")).name, option(c, "--lr")) for c in commands]
    rates = {"RandInit": ["0.1"], "ghn2": ["0.1", "0.025", "0.01"]}
    rates["ghn3xlm16"] = rates["ghn2"]
    assert tried == [(f"resnet50-{n}-0.safetensors", r) for n, all_ in rates.items() for r in all_]
    assert {(option(c, "--epochs"), option(c, "--batch-size")) for c in commands} == {("90", "128")}
    row = next(line for line in printed.splitlines() if line.startswith("ghn3xlm16"))
    assert row.split()[-7:] == ["5.5", "445.5", "895.5", "1.2", "35", "73.5", "76.2"]


@pytest.mark.slow
def test_timm(start: Start, script: Script, small_images: Path, tmp_path: Path) -> None:
    """timm's train.py is no part of its package: TIMM_TRAIN names it. (Several processes of it need
    as many GPUs.)"""
    path = os.environ.get("TIMM_TRAIN")
    if not path:
        pytest.skip("needs timm's train.py: set TIMM_TRAIN to its path")
    command = ("schedules", "--data", small_images, "--out", tmp_path, "--seeds", 1, "--epochs", 2,
               "--starts", "embedded", "--batch-size", 20, "--device", "cpu",
               "--train-script", path, "--train-args", "--workers 0")  # fmt: skip
    printed = start(*command)
    (summary,) = tmp_path.rglob("summary.csv")
    with summary.open() as file:
        expected = [float(row["eval_top1"]) for row in csv.DictReader(file)]
    assert len(expected) == 2
    content = json.loads((tmp_path / "schedules.json").read_text())
    assert content["found"]["resnet10t"]["embedded"]["curves"] == [expected]

    # As if it had been killed while the second epoch ran: the first is kept.
    (summary.parent / "accuracies.json").unlink()
    summary.write_text("".join(summary.read_text().splitlines(keepends=True)[:2]))
    first = summary.parent / "checkpoint-0.pth.tar"
    if not first.exists():
        pytest.skip("only the best checkpoint is kept, and it is the second")
    first.replace(summary.parent / "last.pth.tar")
    again = start(*command)
    assert script("training_runs").read_summary(summary)[0] == expected[0]
    assert again.splitlines()[0] == printed.splitlines()[0]


def test_python_that_runs_train_py(script: Script, small_images: Path, tmp_path: Path) -> None:
    """Several processes are torchrun's, and share the images of a step."""
    runs, small = script("training_runs"), script("schedules").PROTOCOLS["paper"]
    data = script("schedules").load_split(str(small_images), 32)
    options = script("argparse").Namespace(
        out=tmp_path, device="cuda", nproc=4, data=small_images, train_args="--amp",
        train_script=Path("train.py"),
    )  # fmt: skip
    recipe = small.recipes[2]
    command = runs.Runs(recipe, small, data, options).command(
        tmp_path / "w.safetensors", recipe.points[0], 7, tmp_path / "timm" / "name"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "train.py"]
    assert command[:7] == [sys.executable, *launcher]
    assert option(command, "--batch-size") == "128"  # of 512
    assert (option(command, "--opt"), option(command, "--sched")) == ("adamw", "cosine")
    assert command[-1] == "--amp"
