"""The scripts of examples/reproduce, run on tiny stand-ins for their data and checkpoints."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from checkpoint_files import LAYOUTS
from hub_server import Hub, serve, turn_to
from image_folders import ten_levels

from ghn_init import GHN, GHNConfig
from ghn_init.loading import save_checkpoint
from ghn_init.loading.hub import REPOSITORY

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


@pytest.fixture
def published(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub on this machine, with the defaults of paper scale: two small seeded hypernetworks of
    ten classes, in the layouts of the published files."""
    files = {}
    for name, config, layout in (
        ("ghn2", GHNConfig("ghn2", 8, 1, 1, (16, 16, 11, 11), 10), "release"),
        ("ghn3xlm16", GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10), "joblib"),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            files[f"{name}.pt"] = LAYOUTS[layout](GHN(config).state_dict())
    with serve(Hub(REPOSITORY, files)) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch, seconds=None)
        yield
