"""Every command of the README of training, as it stands there, with small sizes put in."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENVIRONMENT, metrics

from ghn_init import train
from ghn_init.cli.main import main

README = Path(train.__file__).with_name("README.md")
SMALL = {
    "make-nets": "--count 6",
    "run": "--hidden-size 16 --layers 1 --meta-batch 2 --batch-size 40 --channels 8 --fc-dims 16 "
    "--max-params 1 --warmup 1",
    "eval": "--num-nets 1 --control 1",
}
"""Options put behind those of a command, which they replace."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert {line[0] for line in lines} == {"ghn-init", "torchrun"}
    return lines


def in_small(command: list[str]) -> list[str]:
    name = next(word for word in command if word in SMALL)
    small = [*command, *SMALL[name].split()]
    if "--start-from" in command:  # of the size and the classes of the small runs
        small += ["--start-from", "runs/small/ghn.safetensors"]
    if name == "run" and "--max-steps" in command:
        small += ["--max-steps", "2"]
    elif name == "run" and ("--epochs" in command or "--start-from" in command):
        small += ["--epochs", "1"]
    return small


@pytest.mark.slow
def test_every_command_runs(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_folder, tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    for command in commands():
        program, *arguments = in_small(command)
        if program == "ghn-init":
            assert main(arguments) == 0, command
            continue
        shutil.rmtree("runs/t8")  # else there would be nothing left to train
        arguments[arguments.index("--nproc-per-node") + 1] = "2"
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
        done = subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert metrics(tmp_path / "runs" / "t8")[-1]["step"] == 75 * (48 // 40)
    assert {path.name for path in Path("runs").iterdir()} == {
        "small",
        "t8",
        "zoo",
        "library",
        "low-rank",
    }
