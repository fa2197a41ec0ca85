"""Hypernetworks and models for others: a folder, and uploads to a Hub on loopback."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hub_server import OLDER, Hub, serve, turn_to
from safetensors import safe_open

import ghn_init
from ghn_init import files
from ghn_init.cli.main import main
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Defaults, GHNConfig
from ghn_init.loading import convert, open_checkpoint
from ghn_init.loading.upload import repository_name
from ghn_init.version import __version__

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub("me/mine", {})) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch, seconds=5)
        yield server


@pytest.fixture
def ghn() -> ghn_init.GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ghn_init.GHN(
            GHNConfig("ghn3", 8, 1, 2, (8, 8, 3, 3), 10), defaults=Defaults(2, frozenset({"bn"}))
        )


def same(a: ghn_init.GHN, b: ghn_init.GHN) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_folder(ghn: ghn_init.GHN, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    ghn_init.save(ghn, folder, license="mit")
    again = ghn_init.load_ghn(f"local-dir:{folder}")
    assert same(ghn, again)
    assert (again.config, again.defaults) == (ghn.config, ghn.defaults)
    assert sorted(snapshot(folder)) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "library_name: ghn_init" in card
    assert "license: mit" in card
    assert 'ghn="local-dir:mine"' in card
    assert "is not recorded" in card
    with torch.no_grad():
        ghn.embed.weight.zero_()
    ghn_init.save(ghn, folder)  # one of ours may be replaced
    assert same(ghn, ghn_init.load_ghn(f"local-dir:{folder}"))
    assert "license" not in (folder / "README.md").read_text().partition("\n---\n")[0]


def test_by_name_as_it_is_stored(tmp_path: Path) -> None:
    """The embedded one, in float16."""
    ghn_init.save("embedded", tmp_path / "copy")
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as file:
        assert file.get_tensor("embed.weight").dtype == torch.float16
    copy, original = open_checkpoint(f"local-dir:{tmp_path / 'copy'}"), open_checkpoint("embedded")
    assert copy.defaults == original.defaults
    assert original.origin.sha256 in (tmp_path / "copy" / "README.md").read_text()
    assert same(ghn_init.load_ghn(copy.name), ghn_init.load_ghn("embedded"))


def test_what_is_not_ours_stays(ghn: ghn_init.GHN, tmp_path: Path) -> None:
    for name, content in (("config.json", "{}"), ("model.safetensors", "x"), ("README.md", "#")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(GHNInitError, match=f"{name} of something else"):
            ghn_init.save(ghn, folder)
        assert snapshot(folder) == {name: content.encode()}
    (tmp_path / "file").write_text("")
    for folder, part in ((tmp_path / "file", "it is a file"), (tmp_path / "no" / "x", "No such")):
        with pytest.raises(GHNInitError, match=part):
            ghn_init.save(ghn, folder)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("full_at", ["model.safetensors", "config.json", "README.md"])
def test_a_full_disk(
    ghn: ghn_init.GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str, before: bool
) -> None:
    """Nothing is written, or what was there stays; the message is one line."""
    folder = tmp_path / "place" / "mine"
    folder.parent.mkdir()
    if before:
        ghn_init.save(ghn, folder)
    old = snapshot(folder.parent)
    flush = files._flush

    def full(path: Path) -> None:
        if full_at in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    with torch.no_grad():
        ghn.embed.weight.add_(1)
    with pytest.raises(GHNInitError, match=r"No space left on device\. Free some space") as caught:
        ghn_init.save(ghn, folder)
    assert "\n" not in str(caught.value)
    assert snapshot(folder.parent) == old
    assert before or not list(folder.parent.iterdir())


def test_numbers_that_are_none(ghn: ghn_init.GHN, tmp_path: Path, hub: Hub) -> None:
    with torch.no_grad():
        ghn.embed.weight.fill_(torch.nan)
    with pytest.raises(GHNInitError, match="not saved"):
        ghn_init.save(ghn, tmp_path / "mine")
    with pytest.raises(GHNInitError, match="not saved"):
        ghn_init.push_to_hub(ghn, "me/mine")
    assert not (tmp_path / "mine").exists()
    assert hub.created is None


def test_push(ghn: ghn_init.GHN, hub: Hub) -> None:
    place = ghn_init.push_to_hub(ghn, "me/mine", private=True, message="First")
    assert hub.created is not None
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    assert hub.messages == ["First"]
    assert place == f"hf-hub:me/mine@{hub.commit}"
    assert list(hub.large.values()) == [hub.files["model.safetensors"]]
    again = ghn_init.load_ghn(place)
    assert same(ghn, again)
    assert (again.defaults, again.origin.revision) == (ghn.defaults, hub.commit)
    for path in ("/api/repos/create", "/api/models/me/mine/commit/main"):
        assert f"ghn_init/{__version__}" in hub.agents[path]


def test_push_again(ghn: ghn_init.GHN, hub: Hub) -> None:
    """A card that its author has rewritten stays, unless a new one is asked for."""
    ghn_init.push_to_hub(ghn, "me/mine")
    hub.files["README.md"] = b"My own words."
    with torch.no_grad():
        ghn.embed.weight.add_(1)
    ghn_init.push_to_hub(ghn, "hf-hub:me/mine")
    assert hub.files["README.md"] == b"My own words."
    assert same(ghn, ghn_init.load_ghn("hf-hub:me/mine"))
    ghn_init.push_to_hub(ghn, "me/mine", new_card=True)
    assert b"library_name: ghn_init" in hub.files["README.md"]


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("401", r"does not let you write there \(HTTP 401\)"),
        ("403", r"does not let you write there \(HTTP 403\)"),
        ("read-only", "hf auth login"),
        ("404", "refuses access"),
        ("silent", "did not answer in time"),
    ],
)
def test_a_hub_that_refuses(
    ghn: ghn_init.GHN, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str,
    part: str,
) -> None:  # fmt: skip
    turn_to(hub.endpoint, tmp_path / "hub", monkeypatch, seconds=1)
    hub.fault = fault
    start = time.monotonic()
    with pytest.raises(GHNInitError, match=part) as caught:
        ghn_init.push_to_hub(ghn, "me/mine")
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith("cannot upload to me/mine: ")
    assert "\n" not in str(caught.value)
    assert not hub.files


def test_no_room_to_prepare(ghn: ghn_init.GHN, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(GHNInitError, match="No space left"):
        ghn_init.push_to_hub(ghn, "me/mine")
    assert hub.created is None


def test_names_of_repositories() -> None:
    assert repository_name("me/mine") == repository_name("hf-hub:me/mine") == "me/mine"
    for text in ("mine", "me/mine/file.pt", f"me/mine@{OLDER}", "me/../x", ""):
        with pytest.raises(GHNInitError, match=r"is no (repository|place) on the Hub"):
            repository_name(text)


def test_the_command(
    ghn: ghn_init.GHN, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ghn_init.save(ghn, tmp_path / "mine")
    convert(tmp_path / "mine" / "model.safetensors", tmp_path / "ghn.safetensors")
    assert main(["push", str(tmp_path / "ghn.safetensors"), "me/mine", "--license", "mit"]) == 0
    assert f"hf-hub:me/mine@{hub.commit}" in capsys.readouterr().out
    assert same(ghn, ghn_init.load_ghn("hf-hub:me/mine"))
    hub.fault = "401"
    assert main(["push", str(tmp_path / "ghn.safetensors"), "me/mine"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ghn-init: cannot upload to me/mine: ")


# Models.


def test_a_model_for_timm(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "w.safetensors"
    arguments = ["export", "resnet10t", "--num-classes", "7", "--ghn", "embedded"]
    assert main([*arguments, "-o", str(file), "--push", "me/mine"]) == 0
    assert f"hf-hub:me/mine@{hub.commit}" in capsys.readouterr().out
    assert set(hub.files) == {"model.safetensors", "config.json", "README.md"}
    config = json.loads(hub.files["config.json"])
    assert (config["architecture"], config["num_classes"]) == ("resnet10t", 7)
    assert hub.files["model.safetensors"] == file.read_bytes()
    card = hub.files["README.md"].decode()
    assert "library_name: timm" in card
    assert "resnet10t, initialized with ghn_init" in card
    model = timm.create_model("hf-hub:me/mine", pretrained=True)
    with safe_open(file, "pt") as stored:
        assert stored.metadata()["method"] == "ghn3-orth"
        state = model.state_dict()
        assert set(stored.keys()) == set(state)
        assert all(torch.equal(stored.get_tensor(name), state[name]) for name in state)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["squeezenet1_1"], "is no model of timm's"),
        (["resnet10t"], "does not let you write there"),
    ],
)
def test_models_that_cannot_be_pushed(
    hub: Hub, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    hub.fault = "read-only"
    assert main(["export", *arguments, "--ghn", "embedded", "--push", "me/mine"]) == 1
    assert part in capsys.readouterr().err
    assert not hub.files


def test_export_wants_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "resnet10t"]) == 1
    assert "give what to write (-o PATH), or a repository" in capsys.readouterr().err
