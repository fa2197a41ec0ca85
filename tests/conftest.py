from __future__ import annotations

from pathlib import Path

import pytest

from ghn_init import _cache


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the recorded numbers, beside the checkout; without it, tests skip."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkpoint cache of its own for a test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GHN_INIT_CACHE", str(folder))
    monkeypatch.setattr(_cache, "_temporary", None)
    return folder
