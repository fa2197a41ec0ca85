from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import timm.models._factory as factory
import torch
from timm import create_model

import ghn_init
from ghn_init import GHN, GHNInitError, timm_hook


def same_parameters(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("method", ["ghn3", "ghn3-orth"])
def test_create_model(method: str, pretrained: bool, checkpoint: Path) -> None:
    model = create_model("resnet18", pretrained, pretrained_cfg=f"{method}:{checkpoint}")
    expected = ghn_init.apply(create_model("resnet18"), method, ghn=checkpoint)
    assert same_parameters(model, expected)
    assert model.pretrained_cfg == timm.create_model("resnet18").pretrained_cfg


def test_keyword_arguments(checkpoint: Path) -> None:
    cfg = f"ghn3:{checkpoint}"
    model = create_model("resnet18", pretrained_cfg=cfg, num_classes=7, in_chans=1, drop_rate=0.3)
    assert model.conv1.weight.shape[1] == 1
    assert model.fc.out_features == 7
    assert model.drop_rate == 0.3
    predicted = ghn_init.predict(model, checkpoint)
    assert "fc.weight" not in predicted
    assert torch.equal(model.bn1.weight, predicted["bn1.weight"])
    features = create_model(
        "resnet18", True, pretrained_cfg=cfg, features_only=True, out_indices=(1, 3)
    )
    assert features.feature_info.channels() == [64, 256]
    predicted = ghn_init.predict(features, checkpoint)
    assert torch.equal(features.bn1.weight, predicted["bn1.weight"])
    model = create_model(
        "vit_tiny_patch16_224", pretrained_cfg=cfg, drop_path_rate=0.1, num_classes=0
    )
    assert isinstance(model.head, torch.nn.Identity)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


def test_other_configurations_go_through_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("ghn_init.api.apply", lambda *a, **k: calls.append(a))
    torch.manual_seed(0)
    with_hook = create_model("resnet18", pretrained_cfg="a1_in1k")
    timm_hook.disable()
    try:
        torch.manual_seed(0)
        without = create_model("resnet18", pretrained_cfg="a1_in1k")
        assert factory.model_entrypoint is timm.models.model_entrypoint
    finally:
        timm_hook.enable()
    assert same_parameters(with_hook, without)
    assert with_hook.pretrained_cfg == without.pretrained_cfg
    assert with_hook.pretrained_cfg["tag"] == "a1_in1k"
    for cfg in ({"url": ""}, None):
        create_model("resnet18", pretrained_cfg=cfg)
    for tag in ("ghn3x", "in1k:ghn3"):
        with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
            create_model("resnet18", pretrained_cfg=tag)
    assert calls == []


def test_switching_off_and_on(checkpoint: Path) -> None:
    cfg = f"ghn3:{checkpoint}"
    assert timm_hook.is_enabled()
    timm_hook.disable()
    try:
        assert not timm_hook.is_enabled()
        with pytest.raises(RuntimeError, match="Invalid pretrained tag"):  # timm's own answer
            create_model("resnet18", pretrained_cfg=cfg)
        timm_hook.disable()
    finally:
        timm_hook.enable()
        timm_hook.enable()
    assert timm_hook.is_enabled()
    a, b = (create_model("resnet18", pretrained_cfg=cfg) for _ in range(2))
    assert same_parameters(a, b)


def test_as_a_tag(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def default(arch: str, device: str) -> tuple[GHN, str]:
        return ghn_init.load_ghn(checkpoint, device), ""

    monkeypatch.setattr("ghn_init.preparation.load_default", default)
    model = create_model("resnet18.ghn3-orth", num_classes=10)
    expected = ghn_init.apply(create_model("resnet18", num_classes=10), ghn=checkpoint)
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b) or name.startswith("fc.")


def test_errors_are_ours(cache: Path) -> None:
    with pytest.raises(GHNInitError, match=r"missing\.pt"):
        create_model("resnet18", pretrained_cfg="ghn3:missing.pt")
    with pytest.raises(RuntimeError, match="Unknown model"):
        create_model("resnet1", pretrained_cfg="ghn3")


def test_a_moved_timm_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_hook.disable()
    monkeypatch.setattr(factory, "create_model", lambda name: name)
    try:
        with pytest.raises(GHNInitError, match=r"pretrained_cfg=\"ghn3\" relies on"):
            timm_hook.enable()
        with pytest.warns(RuntimeWarning, match="not available"):  # as at an import
            timm_hook.enable_or_warn()
    finally:
        monkeypatch.undo()
        timm_hook.enable()


@pytest.mark.parametrize(
    "imports",
    [
        "import ghn_init; from timm import create_model",
        "from timm import create_model; import ghn_init",
        "import timm; create_model = timm.create_model; import ghn_init",
    ],
)
def test_any_order_of_imports(imports: str, checkpoint: Path) -> None:
    code = (
        f"{imports}\n"
        f"a, b = (create_model('resnet18', pretrained_cfg='ghn3:{checkpoint}') for _ in range(2))\n"
        "print(all((p == q).all() for p, q in zip(a.parameters(), b.parameters())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert result.stdout.strip() == "True", result.stderr


_LOOK = """
import importlib.util, inspect, json, pickle, runpy, sys
if sys.argv[1] == "first":
    import ghn_init
    spec = importlib.util.find_spec("timm.models._factory")  # a look must not use the hook up
import timm.models._factory as factory
if sys.argv[1] == "last":
    import ghn_init
entry = factory.model_entrypoint
if sys.argv[1] != "never":
    assert ghn_init.timm_hook.is_enabled()
    assert pickle.loads(pickle.dumps(entry)) is entry
seen = {name: type(value).__name__ for name, value in vars(factory).items() if name[0] != "_"}
seen["loaders"] = [type(factory.__loader__).__name__, type(factory.__spec__.loader).__name__]
seen["code"] = factory.__loader__.get_code("timm.models._factory").co_filename
seen["source"] = inspect.getsource(factory) + inspect.getsource(entry)
seen["file"] = [inspect.getsourcefile(entry), inspect.getfile(entry), str(inspect.signature(entry))]
seen["finders"] = [repr(finder).partition(" object at ")[0] for finder in sys.meta_path]
seen["run"] = sorted(runpy.run_module("timm.models._factory"))
print(json.dumps(seen))
"""


def test_timms_factory_looks_as_if_nobody_had_touched_it() -> None:
    def look(when: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", _LOOK, when]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    never = look("never")
    assert "SourceFileLoader" in never
    assert look("first") == never
    assert look("last") == never


def test_the_entry_point_loads_where_ghn_init_is_missing() -> None:
    stored = pickle.dumps(factory.model_entrypoint)
    code = (
        "import pickle, sys; import timm.models._registry as registry; "
        f"assert pickle.loads({stored!r}) is registry.model_entrypoint; "
        "print('ghn_init' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
