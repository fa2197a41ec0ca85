"""Networks that swallow packets: how long is waited, what is said meanwhile, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkpoint_files import as_joblib, same, tiny_state
from hub_server import Hub, serve, turn_to
from huggingface_hub import constants

from ghn_init import progress
from ghn_init.errors import GHNInitError
from ghn_init.loading import load_default, open_checkpoint, read_tensors
from ghn_init.loading.hub import REPOSITORY
from ghn_init.loading.patience import within

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with two checkpoints; huggingface_hub waits as long for it as for the real one."""
    files = {name: as_joblib(tiny_state()) for name in ("ghn3sm8.pt", "ghn3xlm16.pt")}
    with serve(Hub(REPOSITORY, files)) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch, seconds=None)
        yield server


def test_a_named_checkpoint_fails_soon(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault = "silent"
    start = time.monotonic()
    with pytest.raises(GHNInitError, match="did not answer in time"):
        open_checkpoint("ghn3sm8")
    assert time.monotonic() - start < 15  # 30 is promised
    said = capsys.readouterr().err
    assert f"waiting for {hub.endpoint} to answer (checkpoint ghn3sm8), 10 s at most" in said


def test_the_default_falls_back_sooner(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fault = "silent"
    start = time.monotonic()
    with pytest.warns(UserWarning, match="did not answer in time"):
        ghn, _ = load_default("ghn3")
    assert time.monotonic() - start < 5
    assert ghn.name == "embedded"
    assert "4 s at most" in capsys.readouterr().err


def test_what_is_cached_is_taken_sooner(hub: Hub) -> None:
    found = open_checkpoint("ghn3sm8")
    hub.fault = "silent"
    start = time.monotonic()
    assert open_checkpoint("ghn3sm8") == found
    assert time.monotonic() - start < 5


def test_a_download_that_stalls_is_cut(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_to(hub.endpoint, tmp_path / "hub", monkeypatch, seconds=1)
    hub.fault = "silent-body"
    start = time.monotonic()
    with pytest.raises(GHNInitError, match="the download has stalled"):
        open_checkpoint("ghn3sm8")
    assert time.monotonic() - start < 6  # two timeouts, and a second between; not six
    hub.fault = None
    assert same(read_tensors(open_checkpoint("ghn3sm8")), tiny_state())


def test_a_download_that_drips_is_not_cut(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty bytes in four times as long as huggingface_hub waits for the next one."""
    turn_to(hub.endpoint, tmp_path / "hub", monkeypatch, seconds=1)
    hub.fault, hub.delay = "drip", 0.2
    start = time.monotonic()
    assert same(read_tensors(open_checkpoint("ghn3sm8")), tiny_state())
    assert time.monotonic() - start > 3.9
    assert f"downloading ghn3sm8.pt of {REPOSITORY}" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_the_storage_behind_the_hub_is_silent(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_to(hub.endpoint, tmp_path / "hub", monkeypatch, seconds=1)
    with serve(Hub("any/thing", {}, fault="silent")) as storage:
        hub.storage = storage.endpoint
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        start = time.monotonic()
        with pytest.raises(GHNInitError, match="set HF_HUB_DISABLE_XET=1 to download without it"):
            open_checkpoint("ghn3sm8")
        assert time.monotonic() - start < 5
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        assert same(read_tensors(open_checkpoint("ghn3sm8")), tiny_state())


def test_nothing_is_said_where_it_is_quick(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    open_checkpoint("ghn3sm8")
    assert "ghn_init" not in capsys.readouterr().err


def test_within() -> None:
    assert within(5, lambda: "result") == "result"
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(3))
    assert time.monotonic() - start < 2
    assert progress.DELAY == 2  # seconds until a notice, as is promised


@pytest.mark.parametrize("fault", ["silent", "silent-body"])
def test_control_c_ends_it_at_once(hub: Hub, tmp_path: Path, fault: str) -> None:
    hub.fault = fault
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
    command = ["convert", "ghn3sm8", str(tmp_path / "c.safetensors")]
    with subprocess.Popen(
        [sys.executable, "-m", "ghn_init", *command],
        cwd=ROOT,
        env=kept | settings,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "ghn_init: " in line, line  # waiting, or downloading
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "ghn-init: interrupted\n"
        assert time.monotonic() - start < 2
        assert process.wait() == 130  # what Python does at its end takes longer
