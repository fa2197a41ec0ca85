"""A small data set of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_folders import bright_and_dark


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bright_and_dark(tmp_path_factory.mktemp("images"), 32, bright=160, dark=60, spread=40)
