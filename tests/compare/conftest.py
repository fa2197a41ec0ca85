"""A small data set of images, models in a file, and comparisons that take a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import bright_and_dark
from torch import nn

from ghn_init.compare import Comparison, FineTuning, Point, Split, compare, load_split
from ghn_init.methods import parse_methods as parse
from ghn_init.models import create_model

MODELS = """
import torch
from torch import nn

class Small(nn.Sequential):
    def __init__(self, num_classes=1000, groups=1, dropout=0.5):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, num_classes),
        )

def small(num_classes):
    return Small(num_classes)

def depthwise(num_classes):
    return Small(num_classes, groups=8)

def three_outputs(num_classes):
    return Small(3)

def large(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 20), nn.Flatten(), nn.Linear(4, num_classes))

class Views(nn.Module):
    # It does not run in channels last.
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4 * 16, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).view(x.shape[0], -1))
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bright_and_dark(tmp_path_factory.mktemp("images"), 16, bright=130, dark=110, spread=90)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "zoo.py"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="session")
def data(image_folder: Path) -> Split:
    """32 images to train on, 12 to choose on, 16 to test on."""
    return load_split(str(image_folder), 16, labels=32, validation=12)


Builder = Callable[[int], nn.Module]


@pytest.fixture
def build(models: Path) -> Callable[..., Builder]:
    """Gives the builder of a model in the file."""

    def named(name: str = "small", classes: int = 2) -> Builder:
        return lambda seed: create_model(f"{models}:{name}", None, classes, seed)[0]

    return named


@pytest.fixture
def run(build: Callable[..., Builder], data: Split) -> Callable[..., Comparison]:
    """Makes short comparisons."""

    def make(methods: str = "rand,orth", model: str | Builder = "small", **more: Any) -> Comparison:
        how = {"steps": 4, "batch_size": 8, "eval_every": 2, **more.pop("how", {})}
        builder = build(model) if isinstance(model, str) else model
        points = more.pop("points", [Point(1e-2)])
        images = more.pop("data", data)
        arguments = {"seeds": 2, **more}
        return compare(builder, parse(methods), images, FineTuning(**how), points, **arguments)

    return make
