"""Models as the users of timm and transformers name them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import timm
import torch
from torch import nn

import ghn_init
from ghn_init import GHNInitError, create_model
from ghn_init.models import short_name

TIMM = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": {"tag": "a1_in1k"}}
TRANSFORMERS = {
    "model_type": "resnet", "architectures": ["ResNetForImageClassification"],
    "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
}  # fmt: skip


def test_a_tag_says_which_weights_are_meant() -> None:
    model, library = create_model("resnet18.a1_in1k", num_classes=3)
    assert library == "timm"
    assert model.get_parameter("fc.weight").shape == (3, 512)
    with pytest.raises(GHNInitError, match="Invalid pretrained tag"):
        create_model("resnet18.nonsense")
    with pytest.raises(GHNInitError, match=r"no model 'resnet18\.a1_in1k' in torchvision"):
        create_model("resnet18.a1_in1k", "torchvision")


@pytest.mark.parametrize(
    ("name", "config", "library", "classes"),
    [
        ("hf-hub:org/small", TIMM, "timm", 7),
        ("org/small", TRANSFORMERS, "transformers", 2),
    ],
)
def test_models_on_the_hub(
    name: str, config: dict[str, object], library: str, classes: int, tmp_path: Path
) -> None:
    """The configuration is fetched, and no weights."""
    pytest.importorskip(library)
    code = (
        "import sys, torch\nfrom ghn_init import create_model, apply\n"
        "model, library = create_model(sys.argv[1])\n"
        "_, report = apply(model, ghn='embedded', return_report=True)\n"
        "print(library, report.coverage > 0.7)\n"
        "head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]\n"
        "print(head.out_features)\n"
    )
    files = {"config.json": json.dumps(config).encode()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP", "http"))}
    with hub_server.serve(hub_server.Hub("org/small", files)) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True,
            env=kept | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "*"},
        )  # fmt: skip
    assert done.stdout.split() == [library, "True", str(classes)], done.stderr
    asked = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET"}
    assert "config.json" in asked
    assert not any(path.endswith((".safetensors", ".bin")) for path in asked)


def test_transformers_in_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(**TRANSFORMERS)
    config.save_pretrained(tmp_path)
    trained = transformers.ResNetForImageClassification(config)
    model, library = create_model(str(tmp_path), num_classes=5)
    assert library == "transformers"
    assert model.get_parameter("classifier.1.weight").shape == (5, 16)
    assert len(ghn_init.trace(model)) > 10
    trained.save_pretrained(tmp_path)
    loaded, _ = create_model(str(tmp_path), pretrained=True)
    assert isinstance(loaded, nn.Module)
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./nothing",), "transformers model './nothing' cannot be built: "),
        (("model.py",), "'model.py' is a file: say what gives the model, as in model.py:factory"),
        ((3,), "a model is given by name, not as int"),
        (("resnet18", None, "x"), "num_classes is 'x'"),
        (("resnet18", None, 0), "num_classes is 0"),
        (("resnet18", None, None, "x"), "seed is 'x'"),
        (("resnet18", "keras"), "unknown library 'keras'"),
    ],
)
def test_errors(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(GHNInitError, match=message) as caught:
        create_model(*arguments)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 1


def test_a_timm_model_in_a_folder(tmp_path: Path) -> None:
    """Older timms do not know such places, and have no words for it."""
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    place = f"local-dir:{tmp_path}"
    try:
        timm.models.parse_model_name(place)
    except AssertionError:
        with pytest.raises(GHNInitError, match=r"timm \S+ knows no local-dir: places"):
            create_model(place)
    else:
        assert create_model(place)[0].get_parameter("fc.weight").shape == (7, 512)


def test_names_in_tables() -> None:
    assert short_name("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert short_name("hf-hub:timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert short_name("microsoft/resnet-18") == "resnet-18"
    assert short_name("zoo/models.py:small") == "small"


@pytest.mark.parametrize("device", ["nowhere", 7.5, "cuda:99"])
def test_no_such_device(device: object) -> None:
    with pytest.raises(GHNInitError, match="cannot be used") as caught:
        ghn_init.load_ghn("embedded", device)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 1
