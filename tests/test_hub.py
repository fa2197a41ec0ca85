"""Downloads from the Hub, against a small server on 127.0.0.1: good days and bad ones."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from checkpoint_files import as_joblib, same, tiny_state
from hub_server import COMMIT, HTML, OLDER, Hub, serve, set_constants, turn_to

from ghn_init.errors import GHNInitError
from ghn_init.loading import list_cached, open_checkpoint, read_tensors
from ghn_init.loading.hub import KNOWN, REPOSITORY

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with one checkpoint, and huggingface_hub turned to it, its cache empty.

    What the environment does is tested in fresh processes below.
    """
    files = {"ghn3tm8.pt": as_joblib(tiny_state())}
    older = {"ghn3tm8.pt": as_joblib(tiny_state(seed=1))}
    with serve(Hub(REPOSITORY, files, older)) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch)
        yield server


def message(name: str = "ghn3tm8", **options: str) -> str:
    with pytest.raises(GHNInitError) as caught:
        open_checkpoint(name, **options)  # type: ignore[arg-type]
    return str(caught.value)


def leftovers(folder: Path) -> list[Path]:
    """What a failed download or conversion has left; an older huggingface_hub an empty file."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    return [f for f in files
            if f.suffix == ".tmp" or (f.suffix == ".incomplete" and f.stat().st_size)]  # fmt: skip


def test_download(hub: Hub) -> None:
    checkpoint = open_checkpoint("ghn3tm8")
    assert same(read_tensors(checkpoint), tiny_state())
    assert checkpoint.name == "ghn3tm8"
    assert checkpoint.origin.source == "hub:SamsungSAILMontreal/ghn3/ghn3tm8.pt"
    assert checkpoint.origin.revision == COMMIT
    assert checkpoint.origin.sha256 == hashlib.sha256(hub.files["ghn3tm8.pt"]).hexdigest()
    assert list_cached() == [checkpoint]
    assert open_checkpoint("ghn3tm8") == checkpoint
    assert len(hub.downloads) == 1


def test_revision_can_be_pinned(hub: Hub) -> None:
    pinned = open_checkpoint(f"ghn3tm8@{OLDER}")
    assert pinned.origin.revision == OLDER
    assert same(read_tensors(pinned), tiny_state(seed=1))
    assert open_checkpoint("ghn3tm8@main").origin.revision == COMMIT
    hub.requests.clear()
    assert open_checkpoint(f"ghn3tm8@{OLDER}") == pinned
    assert not hub.requests  # a commit cannot change: no need to ask


def test_new_revision_is_taken(hub: Hub) -> None:
    open_checkpoint("ghn3tm8")
    hub.files["ghn3tm8.pt"], hub.commit = as_joblib(tiny_state(seed=2)), COMMIT[::-1]
    checkpoint = open_checkpoint("ghn3tm8")
    assert checkpoint.origin.revision == COMMIT[::-1]
    assert same(read_tensors(checkpoint), tiny_state(seed=2))


def test_revisions_that_are_none(hub: Hub) -> None:
    assert "no revision 'v7'" in message("ghn3tm8@v7")
    for revision in ("", "../x", "a b", "x" * 200):
        assert "is no revision" in message(f"ghn3tm8@{revision}")


def test_demanded_checksum(hub: Hub) -> None:
    digest = hashlib.sha256(hub.files["ghn3tm8.pt"]).hexdigest()
    assert open_checkpoint("ghn3tm8", sha256=digest).origin.sha256 == digest
    assert f"not {digest[::-1]}" in message(sha256=digest[::-1])


FAULTS = {
    "401": "refuses access",
    "403": "refuses access",
    "429": "too many requests",
    "500": "has trouble (HTTP 500)",
    "503": "has trouble (HTTP 503)",
    "slow": "did not answer in time",
    "html": "did not come from a Hub",
    "cut-always": "broke off in the middle",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault = fault
    monkeypatch.setattr(hub, "delay", 0.6)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between huggingface_hub's retries
    found = message()
    assert FAULTS[fault] in found
    assert "download ghn3tm8.pt on any machine" in found
    assert "HF_ENDPOINT" in found
    assert not leftovers(tmp_path)
    hub.fault = None
    assert same(read_tensors(open_checkpoint("ghn3tm8")), tiny_state())


@pytest.mark.parametrize("fault", ["500", "slow", "html"])
def test_faults_do_not_matter_once_it_is_cached(
    fault: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint("ghn3tm8")
    monkeypatch.setattr(hub, "delay", 0.6)
    hub.fault = fault
    assert open_checkpoint("ghn3tm8") == checkpoint


def test_file_that_the_repository_has_not(hub: Hub) -> None:
    found = message("ghn2")
    assert "has no file ghn2.pt (HTTP 404)" in found
    assert "give its path" in found


def test_cut_download_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    set_constants(monkeypatch, DOWNLOAD_CHUNK_SIZE=1000)
    hub.fault = "cut"
    with suppress(GHNInitError):  # an older huggingface_hub goes on in the next call
        open_checkpoint("ghn3tm8")
    assert same(read_tensors(open_checkpoint("ghn3tm8")), tiny_state())
    first, second = hub.downloads
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) > len(hub.files["ghn3tm8.pt"]) // 3


@pytest.mark.parametrize("fault", ["corrupt", "html-body"])
def test_download_of_other_bytes_of_the_same_size(fault: str, hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub only compares sizes; this compares checksums."""
    hub.fault = fault
    found = message()
    assert "not the file that the Hub has announced" in found
    hub.fault = None
    digest = hashlib.sha256(hub.files["ghn3tm8.pt"]).hexdigest()
    (blob,) = (tmp_path / "hub").rglob(f"blobs/{digest}")
    assert str(blob) in found
    blob.unlink()  # as the message says
    assert same(read_tensors(open_checkpoint("ghn3tm8")), tiny_state())


def test_web_page_in_the_place_of_the_file(hub: Hub) -> None:
    hub.files["ghn3tm8.pt"] = HTML
    assert "it is a web page" in message()


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "huggingface_hub is not installed" in message()


def test_known_names() -> None:
    assert set(KNOWN) == {"ghn3xlm16", "ghn3lm8", "ghn3sm8", "ghn3tm8", "ghn2"}
    assert KNOWN["ghn3xlm16"] == "ghn3xlm16.pt"


# The environment, in fresh processes.

OPEN = """
import sys, time
time.sleep = lambda seconds: None
from ghn_init.loading import open_checkpoint
from ghn_init.errors import GHNInitError
try:
    print(open_checkpoint(sys.argv[1]).origin.revision)
except GHNInitError as error:
    print(error)
"""


def run(folder: Path, **environment: str) -> str:
    """What opening ghn3tm8 prints in a fresh process with nothing but these settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP"))}
    proxies = [name for name in kept if name.lower().endswith("_proxy")]
    for name in proxies:
        del kept[name]
    done = subprocess.run(
        [sys.executable, "-c", OPEN, "ghn3tm8"],
        cwd=ROOT,
        env=kept | {"HF_HOME": str(folder / "hf")} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_environment(hub: Hub, tmp_path: Path) -> None:
    found = run(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in found
    assert not hub.requests
    assert run(tmp_path, HF_ENDPOINT=hub.endpoint) == COMMIT
    asked = len(hub.requests)
    assert run(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1") == COMMIT
    assert len(hub.requests) == asked
    # The server gone, the cache serves.
    assert run(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == COMMIT


def test_nothing_listens(tmp_path: Path) -> None:
    assert "cannot be reached" in run(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")


def test_proxies(hub: Hub, tmp_path: Path) -> None:
    elsewhere = "http://hub.invalid"
    found = run(tmp_path, HF_ENDPOINT=elsewhere, HTTP_PROXY="http://127.0.0.1:9")
    assert "cannot be reached" in found or "proxy" in found
    # A proxy that answers, but will not connect: this server knows no CONNECT.
    found = run(tmp_path, HF_ENDPOINT="https://hub.invalid", HTTPS_PROXY=hub.endpoint)
    assert "the proxy refuses the connection" in found
