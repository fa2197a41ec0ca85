"""The training scripts of examples/integrations run, and start from what `apply` gives."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from image_folders import bright_and_dark

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "integrations"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bright_and_dark(tmp_path_factory.mktemp("images"), 32, 200, 60, 30)


def run(program: list[str], images: Path, cwd: Path) -> str:
    """What a script prints last, after three steps."""
    arguments = ["--data", str(images), "--steps", "3", "--batch-size", "4"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("plain_ddp.py", None),
        ("hf_trainer.py", "transformers"),
        ("with_accelerate.py", "accelerate"),
        ("with_lightning.py", "lightning"),
    ],
)
def test_script(script: str, needs: str | None, images: Path, tmp_path: Path) -> None:
    if needs and find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    if script == "hf_trainer.py" and find_spec("accelerate") is None:
        pytest.skip("transformers' Trainer needs accelerate")
    assert run([sys.executable, str(FOLDER / script)], images, tmp_path).startswith("step 3:")


def test_all_processes_start_from_the_same_tensors(images: Path, tmp_path: Path) -> None:
    """The script compares them, and stops where they differ."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", str(FOLDER / "plain_ddp.py")]
    assert run(launcher, images, tmp_path).startswith("step 3:")


def test_timm_trains_from_an_exported_file(images: Path, tmp_path: Path) -> None:
    """timm's train.py is no part of its package: TIMM_TRAIN names it."""
    script = os.environ.get("TIMM_TRAIN")
    if not script:
        pytest.skip("needs timm's train.py: set TIMM_TRAIN to its path")
    start = tmp_path / "start.safetensors"
    export = ["-m", "ghn_init", "export", "resnet18", "--num-classes", "2", "--ghn", "embedded"]
    subprocess.run([sys.executable, *export, "-o", str(start)], check=True)
    train = [sys.executable, script, "--data-dir", str(images), "--model", "resnet18"]
    train += ["--num-classes", "2", "--img-size", "32", "--input-size", "3", "32", "32"]
    train += ["--initial-checkpoint", str(start), "--epochs", "1", "--batch-size", "4"]
    train += ["--val-split", "test", "--device", "cpu", "--workers", "0", "--lr", "0.01"]
    train += ["--output", str(tmp_path / "out")]
    done = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Best metric" in done.stdout + done.stderr
