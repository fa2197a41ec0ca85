"""Every command and every example of the READMEs runs; sizes are made small, nothing else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from image_folders import bright_and_dark

import ghn_init

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "ghn_init" / "compare" / "README.md"]
"""Those of training and of the analyses have tests beside the tests of their packages."""

NOT_RUN = {
    "python3 -m venv": "installs; .ci/run does that",
    "python -m pytest": "this is it",
    "ruff check": "lints; .ci/run does that",
    "pre-commit": "needs a checkout of git",
    "ghn-init convert ghn3tm8": "needs the network",
    "ghn-init verify ghn3tm8": "needs the network",
    "ghn-init push": "uploads",
    "python train.py": "timm's script, which test_integrations runs",
    "pip install": "installs",
    "python tests/fuzz": "runs for minutes",
}
"""Beginnings of commands that are not run here, and why."""

SMALLER = {
    r"--count \d+": "--count 6",
    r"--epochs \d+": "--max-steps 2",
    r"--max-steps \d+": "--max-steps 2",
    r"--nproc-per-node \d": "--nproc-per-node 2",
    r"--meta-batch \d+": "--meta-batch 2",
    r"--labels \d+": "--labels 20",
    r"--seeds \d+": "--seeds 1 --steps 2 --batch-size 8",
    r"--steps 20": "--steps 2",
    r"--out runs/t8": "--out runs/t8 --batch-size 4",
    r"--repeat \d+": "--repeat 1",
    r"resnet18 --data": "resnet10t --data",
}


def blocks(language: str) -> list[tuple[Path, str]]:
    """The fenced blocks of a language, with the file that each stands in."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(path, text) for path in READMES for text in fence.findall(path.read_text())]


def commands() -> list[str]:
    """One command a line, in the order in which they stand; comments are cut off."""
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    shown = [line[2:] for _, t in blocks("text") for line in t.splitlines() if line[:2] == "$ "]
    found = (line.split("  #")[0].strip() for line in lines + shown)
    return list(dict.fromkeys(line for line in found if line))


def reason_not_to_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the repository's examples, and images in `cifar10/`."""
    root = tmp_path_factory.mktemp("readme")
    bright_and_dark(root / "cifar10", 32, 200, 60, 30)
    (root / "examples").symlink_to(ROOT / "examples")
    return root


def run(command: str, folder: Path) -> str:
    for pattern, small in SMALLER.items():
        command = re.sub(pattern, small, command)
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done.stdout


def test_readmes_are_found() -> None:
    assert all(path.exists() for path in READMES)
    assert len(commands()) >= 4


@pytest.mark.slow
def test_commands_run_as_printed(folder: Path) -> None:
    """In the order of the READMEs, as later ones use what earlier ones write."""
    wrong = []
    for command in commands():
        if not reason_not_to_run(command):
            try:
                run(command, folder)
            except AssertionError as error:
                wrong.append(str(error))
    assert not wrong, "\n\n".join(wrong)


def test_shown_output_is_what_is_printed(folder: Path) -> None:
    """`$ command` and what follows it, in the README."""
    shown = [text for path, text in blocks("text") if path == ROOT / "README.md"]
    shown = [text for text in shown if text.startswith("$ ")]
    assert shown
    for text in shown:
        command, expected = text.split("\n", 1)
        assert run(command.removeprefix("$ "), folder).strip() == expected.strip()


@pytest.mark.filterwarnings("ignore:the default checkpoint")
@pytest.mark.usefixtures("cache", "offline")
def test_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Python blocks of the README, one after the other; without a network."""
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("resnet10t", num_classes=10)
    names = {"model": model, "torch": torch, "batches": [torch.randn(4, 3, 32, 32)]}
    found = [text for path, text in blocks("python") if path == ROOT / "README.md"]
    assert len(found) >= 3
    for text in found:
        exec(compile(text, "README.md", "exec"), names)
    assert isinstance(names["report"], ghn_init.Report)
