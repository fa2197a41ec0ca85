from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import set_constants

from ghn_init import GHN, GHNConfig
from ghn_init.loading import cache as cache_module
from ghn_init.loading import save_checkpoint
from ghn_init.methods import Method, registry

# Whoever runs the tests may be behind a proxy, offline, or logged in to the Hub. huggingface_hub
# looks at the environment when it is imported.
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING")) or _name.upper().endswith(("_PROXY", "_OFFLINE")):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """A test draws the same numbers each time, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


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
    monkeypatch.setattr(cache_module, "_temporary", None)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with HF_HUB_OFFLINE in the environment, which huggingface_hub reads at its import."""
    from huggingface_hub import utils

    forget = getattr(utils, "reset_sessions", lambda: None)  # before 1.0 they are kept
    set_constants(monkeypatch, HF_HUB_OFFLINE=True)
    forget()
    yield
    forget()


@pytest.fixture
def registered() -> Iterator[dict[str, Method]]:
    """The registry's methods by name, to add to and take from; afterwards all are as before."""
    methods = registry._registered
    before = dict(methods)  # messages list the methods, so their order matters too
    yield methods
    methods.clear()
    methods.update(before)


@pytest.fixture
def checkpoint(tmp_path: Path, cache: Path) -> Path:
    """A file of a small seeded GHN-3 with 1000 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ghn = GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 1000))
    path = tmp_path / "ghn.safetensors"
    save_checkpoint(path, ghn.state_dict(), ghn.config)
    return path
