"""A small data set of images, a few small architectures, and a run that takes seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_folders import bright_and_dark

from ghn_init.train.config import TrainConfig, Widths
from ghn_init.train.networks.generate import sample
from ghn_init.train.networks.genotypes import to_json
from ghn_init.train.networks.nets import header, nets_path


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """For every test: another may have set another number, which changes the last digits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bright_and_dark(tmp_path_factory.mktemp("images"), 32, bright=160, dark=60, spread=40)


@pytest.fixture(scope="session")
def nets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the smallest training architectures of the first hundred."""
    folder = tmp_path_factory.mktemp("nets")
    nets = sorted((sample("train", i) for i in range(100)), key=lambda a: a.num_nodes or 0)[:12]
    lines = [json.dumps(entry) for entry in (header("train", 0), *map(to_json, nets))]
    nets_path(folder, "train").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def config(image_folder: Path, nets_folder: Path) -> Callable[..., TrainConfig]:
    """Makes configurations of short runs."""

    def make(**changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "nets": str(nets_folder),
            "data": f"imagefolder:{image_folder}",
            "steps": 4,
            "hidden_size": 16,
            "layers": 1,
            "meta_batch": 2,
            "batch_size": 8,
            "warmup": 1,
            "dropout": 0.2,
            "widths": Widths((8,), (16,), 1),
            "seed": random.Random(3).randrange(100),
        }
        return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]

    return make
