"""Hypernetworks from anyone: repositories on the Hub, and folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import as_joblib, as_safetensors, same, tiny_state
from hub_server import COMMIT, OLDER, Hub, serve, turn_to
from huggingface_hub import hf_hub_download

import ghn_init
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Defaults, GHNConfig
from ghn_init.loading import (
    checkpoints_on_hub,
    convert,
    list_cached,
    open_checkpoint,
    read_tensors,
)
from ghn_init.loading.metadata import folder_config
from ghn_init.version import __version__

pytestmark = pytest.mark.usefixtures("cache")

TINY = GHNConfig("ghn3", 8, 2, 2, (4, 4, 2, 2), 10)
WEIGHTS = "model.safetensors"


def config_file(**defaults: object) -> bytes:
    return json.dumps(folder_config(TINY, Defaults(**defaults))).encode()  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        WEIGHTS: as_safetensors(tiny_state()),
        "config.json": config_file(orth_start=1, norms=frozenset({"bn"})),
        "other/plain.pt": as_joblib(tiny_state(seed=1)),
        "README.md": b"# text",
    }
    older = {"only.pt": as_joblib(tiny_state(seed=2)), "config.json": b'{"model_type": "vit"}'}
    with serve(Hub("anyone/ghn", files, older)) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch)
        yield server


def message(place: str) -> str:
    with pytest.raises(GHNInitError) as caught:
        open_checkpoint(place)
    return str(caught.value)


def test_a_repository(hub: Hub) -> None:
    found = open_checkpoint("hf-hub:anyone/ghn")
    assert same(read_tensors(found), tiny_state())
    assert found.name == "hf-hub:anyone/ghn"
    assert found.origin.source == "hub:anyone/ghn/model.safetensors"
    assert found.origin.revision == COMMIT
    assert found.origin.sha256 == hashlib.sha256(hub.files[WEIGHTS]).hexdigest()
    assert found.defaults == Defaults(orth_start=1, norms=frozenset({"bn"}))
    assert list_cached() == [found]
    assert len(hub.downloads) == 2  # of two files
    assert open_checkpoint("hf-hub:anyone/ghn") == found
    assert len(hub.downloads) == 2


def test_a_file_of_a_repository(hub: Hub) -> None:
    found = open_checkpoint("hf-hub:anyone/ghn/other/plain.pt")
    assert same(read_tensors(found), tiny_state(seed=1))
    assert found.origin.source == "hub:anyone/ghn/other/plain.pt"
    assert found.origin.revision == COMMIT
    assert found.defaults == Defaults()  # the config.json of another folder is not asked


def test_a_revision(hub: Hub) -> None:
    found = open_checkpoint(f"hf-hub:anyone/ghn@{OLDER}")
    assert same(read_tensors(found), tiny_state(seed=2))  # the only checkpoint in it
    assert found.origin.revision == OLDER
    assert found.defaults == Defaults()  # its config.json is another library's
    assert open_checkpoint(f"hf-hub:anyone/ghn/only.pt@{OLDER}").origin == found.origin
    assert "no revision 'v7'" in message("hf-hub:anyone/ghn@v7")


def test_the_cache_serves_where_the_hub_does_not(hub: Hub) -> None:
    found = open_checkpoint("hf-hub:anyone/ghn")
    plain = open_checkpoint("hf-hub:anyone/ghn/other/plain.pt")
    for fault in ("500", "silent"):
        hub.fault = fault
        assert open_checkpoint("hf-hub:anyone/ghn") == found
        assert open_checkpoint("hf-hub:anyone/ghn/other/plain.pt") == plain


@pytest.mark.parametrize("fault", ["500", "silent"])
def test_a_file_that_was_fetched_by_hand(
    hub: Hub, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is a config.json beside it, nobody knows: what is cached counts."""
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between huggingface_hub's retries
    hf_hub_download("anyone/ghn", "other/plain.pt")
    hub.fault = fault
    found = open_checkpoint("hf-hub:anyone/ghn/other/plain.pt")
    assert same(read_tensors(found), tiny_state(seed=1))


def test_a_commit_is_not_asked_for_again(hub: Hub) -> None:
    place = f"hf-hub:anyone/ghn/model.safetensors@{COMMIT}"
    found = open_checkpoint(place)
    hub.requests.clear()
    assert open_checkpoint(place) == found
    assert not hub.requests


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("hf-hub:", "is no place on the Hub"),
        ("hf-hub:ghn", "is no place on the Hub"),
        ("hf-hub:anyone/../ghn", "is no place on the Hub"),
        ("hf-hub:anyone/ghn/../../x.pt", "is no place on the Hub"),
        ("hf-hub:anyone/ghn@", "is no revision"),
        ("hf-hub:anyone/nothing", "refuses access to anyone/nothing"),
        ("hf-hub:anyone/ghn/nothing.pt", "has no file nothing.pt"),
        ("local-dir:/does/not/exist", "cannot read the folder"),
        ("nothing", "hf-hub:ORGANIZATION/NAME"),
    ],
)
def test_places_that_are_none(hub: Hub, place: str, part: str) -> None:
    assert part in message(place)


def test_which_of_several_is_asked(hub: Hub) -> None:
    del hub.files[WEIGHTS]
    assert "Give one of them: hf-hub:anyone/ghn/other/plain.pt" in message("hf-hub:anyone/ghn")
    hub.files |= {"a.pt": b"1", "b.pt": b"2"}
    assert "hf-hub:anyone/ghn/a.pt, hf-hub:anyone/ghn/b.pt" in message("hf-hub:anyone/ghn")
    hub.files["c.safetensors"] = as_safetensors(tiny_state())  # safetensors come first
    assert open_checkpoint("hf-hub:anyone/ghn").origin.source.endswith("/c.safetensors")
    hub.files = {"notes.txt": b""}
    assert "holds no checkpoint" in message("hf-hub:anyone/ghn")


def test_what_a_repository_holds(hub: Hub) -> None:
    assert checkpoints_on_hub("hf-hub:anyone/ghn") == [
        "hf-hub:anyone/ghn/model.safetensors",
        "hf-hub:anyone/ghn/other/plain.pt",
    ]
    (plain,) = checkpoints_on_hub("hf-hub:anyone/ghn/other@main")
    assert plain == "hf-hub:anyone/ghn/other/plain.pt@main"
    assert same(read_tensors(open_checkpoint(plain)), tiny_state(seed=1))
    with pytest.raises(GHNInitError, match="is no place on the Hub"):
        checkpoints_on_hub("ghn3tm8")


def test_nothing_in_it_is_run(hub: Hub, tmp_path: Path) -> None:
    trap = tmp_path / "was run"
    hub.files["evil.pt"] = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    assert "evil.pt" in message("hf-hub:anyone/ghn/evil.pt")
    assert not trap.exists()


def test_a_damaged_config(hub: Hub) -> None:
    other = dataclasses.replace(TINY, num_classes=7)
    for content, part in (
        (b"[]", "is no JSON object"),
        (b"{", "cannot be read"),
        (json.dumps(folder_config(other, Defaults())).encode(), "is not that of its tensors"),
        (json.dumps({"library_name": "ghn_init", "defaults": {"norms": "all"}}).encode(), "norms"),
    ):
        hub.files["config.json"], hub.commit = content, hashlib.sha1(content).hexdigest()
        assert part in message("hf-hub:anyone/ghn")


def test_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(as_safetensors(tiny_state()))
    (folder / "config.json").write_bytes(config_file(orth_start=3))
    found = open_checkpoint(f"local-dir:{folder}")
    assert found.origin.source == str(folder / WEIGHTS)
    assert found.origin.revision is None
    assert found.defaults.orth_start == 3
    (folder / "config.json").write_bytes(config_file(orth_start=4))
    assert open_checkpoint(f"local-dir:{folder}").defaults.orth_start == 4
    assert open_checkpoint(folder / WEIGHTS).defaults == Defaults()  # the file alone
    convert(f"local-dir:{folder}", tmp_path / "copy.safetensors")
    assert open_checkpoint(tmp_path / "copy.safetensors").defaults.orth_start == 4
    assert f"local-dir:{folder}" in message(str(folder))
    assert "Leave local-dir: out" in message(f"local-dir:{folder / WEIGHTS}")


def test_who_asks_is_said(hub: Hub) -> None:
    ghn_init.load_ghn("hf-hub:anyone/ghn")
    assert hub.agents
    assert all(f"ghn_init/{__version__}" in agent for agent in hub.agents.values())


def test_wherever_a_hypernetwork_is_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ghn_init.cli.main import main

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ghn = ghn_init.GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 1000))
    hub.files = {"ghn.safetensors": as_safetensors(ghn.state_dict())}
    place, file = "hf-hub:anyone/ghn", tmp_path / "w.safetensors"
    model = timm.create_model("resnet10t")
    _, report = ghn_init.apply(model, "ghn3", ghn=place, return_report=True)
    assert report.checkpoint == place
    assert report.checkpoint_revision == COMMIT
    assert len(report.checkpoint_sha256) == 64
    with torch.no_grad():
        hooked = timm.create_model("resnet10t", pretrained_cfg=f"ghn3:{place}")
    assert torch.equal(hooked.conv1[0].weight, model.conv1[0].weight)
    run: Callable[..., int] = lambda *arguments: main(list(arguments))  # noqa: E731
    assert run("export", "resnet10t", "--ghn", place, "-o", str(file)) == 0
    assert run("convert", place, str(tmp_path / "c.safetensors")) == 0
    assert run("list", place) == 0
    assert f"{place}/ghn.safetensors\n" in capsys.readouterr().out
    assert run("list", "--cached") == 0
    assert f"hub:anyone/ghn/ghn.safetensors@{COMMIT}" in capsys.readouterr().out
