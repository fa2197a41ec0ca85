"""The scripts of examples/reproduce, run on tiny stand-ins for their data and checkpoints."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from image_folders import ten_levels

from ghn_init import GHN, GHNConfig
from ghn_init.loading import save_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reproduce"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def start(
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Runs a script and gives what it prints."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        script(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, nothing is trained or measured any more."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is computed again")

    def forbid() -> None:
        for name in (
            "compare.run.fine_tune",
            "analysis.ranking.zero_cost",
            "analysis.ranking.top1",
        ):
            monkeypatch.setattr(f"ghn_init.{name}", refuse)

    return forbid


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_levels(tmp_path_factory.mktemp("small") / "images", 32)


@pytest.fixture(scope="session")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_levels(tmp_path_factory.mktemp("large") / "images", 224, 4, 1)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts that share runs write."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Stand-ins for the published checkpoints: two hypernetworks, of ten classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = []
    for width, name in ((8, "ghn3tm8"), (16, "ghn3xlm16")):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ghn = GHN(GHNConfig("ghn3", width, 2, 8, (width, width, 11, 11), 10))
        paths.append(folder / f"{name}.safetensors")
        save_checkpoint(paths[-1], ghn.state_dict(), ghn.config)
    return paths
