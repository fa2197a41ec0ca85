"""The checkpoint in the package, and the default that always works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from checkpoint_files import GHN3, as_joblib, as_safetensors, tiny_state
from hub_server import Hub, serve, turn_to
from safetensors import safe_open

import ghn_init
from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.hypernetwork.config import Defaults
from ghn_init.loading import convert, open_checkpoint, save_checkpoint
from ghn_init.loading.embedded import embedded_path
from ghn_init.loading.hub import REPOSITORY

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that refuses every connection, and an empty cache."""
    turn_to("http://127.0.0.1:9", tmp_path / "hub", monkeypatch, seconds=None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a tiny hypernetwork under the name of the default one."""
    with serve(Hub(REPOSITORY, {"ghn3xlm16.pt": as_joblib(tiny_state())})) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch, seconds=None)
        yield server


def model() -> torch.nn.Module:
    return torchvision.models.squeezenet1_1(num_classes=10)


def test_it_is_small_and_predicts_finite_numbers() -> None:
    assert embedded_path().stat().st_size <= 25_000_000
    ghn = ghn_init.load_ghn("embedded")
    assert (ghn.config.arch, ghn.config.num_classes, ghn.name) == ("ghn3", 10, "embedded")
    predicted = ghn_init.predict(model(), ghn)
    assert "classifier.1.weight" in predicted
    assert all(torch.isfinite(tensor).all() for tensor in predicted.values())


def test_it_says_how_it_was_made() -> None:
    with safe_open(embedded_path(), framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["ghn_init.defaults"]) == {"norms": ["bn", "ln"], "orth_start": 0.25}
    card = (embedded_path().parent / "ghn3-cifar10.md").read_text(encoding="utf-8")
    assert open_checkpoint("embedded").origin.sha256 in card


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_the_default_is_the_embedded_one() -> None:
    start = time.monotonic()
    with pytest.warns(UserWarning, match="using the small embedded one") as caught:
        _, report = ghn_init.apply(model(), return_report=True)
    assert time.monotonic() - start < 15  # huggingface_hub's own attempts take 23 s
    assert len(caught) == 1
    assert report.checkpoint == "embedded"
    assert str(caught[0].message) in report.notes
    assert "the Hub cannot be reached" in str(report)


@pytest.mark.usefixtures("no_hub", "offline")
def test_a_named_checkpoint_is_never_replaced() -> None:
    net = model()
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(GHNInitError, match=r"'ghn3xlm16' is not in the cache .* ghn='embedded'"):
        ghn_init.apply(net, ghn="ghn3xlm16")
    with pytest.raises(GHNInitError, match="'ghn2' is not in the cache"):
        ghn_init.apply(net, "ghn2")  # no embedded one of this kind
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_the_published_one_is_the_default_where_there_is_a_hub(hub: Hub) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = ghn_init.apply(model(), return_report=True)
    assert report.checkpoint == "ghn3xlm16"
    hub.fault = "500"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = ghn_init.apply(model(), return_report=True)  # it is in the cache now
    assert report.checkpoint == "ghn3xlm16"


def test_a_hub_that_refuses_is_no_network(hub: Hub) -> None:
    hub.fault = "401"
    with pytest.warns(UserWarning, match="refuses access .* embedded"):
        ghn_init.apply(model())


def test_a_damaged_default_is_an_error(hub: Hub) -> None:
    hub.files["ghn3xlm16.pt"] = b"no checkpoint"
    with pytest.raises(GHNInitError, match="ghn3xlm16"):
        ghn_init.apply(model())


def test_embedded_by_name_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = ghn_init.apply(model(), ghn="embedded", return_report=True)
    assert not any("embedded" in note for note in report.notes)


def test_layer_norms_are_predicted_and_three_quarters_of_the_layers_made_orthogonal() -> None:
    """Its predictions for layer norms leave an output that depends on the image."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spread = {}
    for norms in ("auto", "keep"):
        net = timm.create_model("convnext_atto", num_classes=10)
        _, report = ghn_init.apply(net, ghn="embedded", norms=norms, return_report=True)
        layers = {n for n, m in net.named_modules() if isinstance(m, torch.nn.LayerNorm)}
        norms_predicted = {n for n in layers if f"{n}.weight" in report.predicted}
        assert norms_predicted == (layers if norms == "auto" else set())
        assert report.orth_start == 10  # a quarter of its 41 layers
        with torch.no_grad():
            spread[norms] = net(images).std(dim=0).mean()
    assert spread["auto"] > 0.1 * spread["keep"]  # 1e-6 of it before real families were trained on


def test_its_defaults_can_be_overruled() -> None:
    net = torchvision.models.resnet18(num_classes=10)
    _, report = ghn_init.apply(net, ghn="embedded", orth_start=0.5, return_report=True)
    assert report.orth_start == 10
    assert "bn1.weight" in report.predicted


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_converted_copy_has_its_defaults(dtype: str | None, tmp_path: Path) -> None:
    convert("embedded", tmp_path / "mine.safetensors", dtype=dtype)
    ghn = ghn_init.load_ghn(tmp_path / "mine.safetensors")
    assert ghn.defaults == Defaults(0.25, {"bn", "ln"})
    net = timm.create_model("convnext_atto", num_classes=10)
    _, report = ghn_init.apply(net, ghn=ghn, return_report=True)
    assert report.orth_start == 10
    assert "stem.1.weight" in report.predicted


def test_a_checkpoint_can_say_that_it_predicts_layer_norms_badly(tmp_path: Path) -> None:
    convert("embedded", tmp_path / "mine.safetensors", norms={"bn"})
    ghn = ghn_init.load_ghn(tmp_path / "mine.safetensors")
    net = timm.create_model("convnext_atto", num_classes=10)
    _, report = ghn_init.apply(net, ghn=ghn, return_report=True)
    left = {name for name, reason in report.left.items() if "too few" in reason}
    layers = {n for n, m in net.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert {name.rpartition(".")[0] for name in left} == layers


def test_export_on_a_machine_without_network(tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
        "GHN_INIT_CACHE": str(tmp_path / "cache"),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", "from ghn_init.cli.main import main; raise SystemExit(main())"]
    arguments = ["export", "squeezenet1_1", "--library", "torchvision", "-o", "w.safetensors"]
    result = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"ghn-init: warning: the default checkpoint ghn3xlm16 .*\n", result.stderr)
    assert "checkpoint embedded" in result.stdout
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata()["checkpoint"] == "embedded"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_can_be_stored_in_half_precision(dtype: str, tmp_path: Path) -> None:
    state = tiny_state()
    save_checkpoint(tmp_path / "a.safetensors", state, GHN3)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=dtype)
    full, half = (ghn_init.load_ghn(tmp_path / f"{name}.safetensors") for name in "ab")
    for name, tensor in half.state_dict().items():
        expected = full.state_dict()[name].to(getattr(torch, dtype)).float()
        assert torch.equal(tensor, expected)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * len(as_safetensors(state))


def test_numbers_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tiny_state()
    state["ln.weight"][0] = 1e6
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_checkpoint(source, state, GHN3)
    target.write_text("old")
    assert main(["convert", str(source), str(target), "--dtype", "float16"]) == 1
    assert "'ln.weight' has numbers too large" in capsys.readouterr().err
    assert target.read_text() == "old"
    with pytest.raises(GHNInitError, match="unknown dtype"):
        convert(source, target, dtype="int8")
