"""The commands, and models as a user names them."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ghn_init
from ghn_init import GHNInitError, progress
from ghn_init.analysis import LazyModels, embedding, load_model
from ghn_init.analysis import extra as extra
from ghn_init.cli.analysis import add_parsers
from ghn_init.models import create_model, short_name

FACTORY = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    width: int = 4

def small(num_classes=1000, width=Settings().width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )

def wide(num_classes=1000):
    return small(num_classes, 8)

def broken():
    raise ValueError("it does not work")

number = lambda: 7
"""


@pytest.fixture
def zoo(tmp_path: Path) -> str:
    path = tmp_path / "zoo.py"
    path.write_text(FACTORY)
    return str(path)


@pytest.fixture
def checkpoint(checkpoint: Path) -> str:
    return str(checkpoint)


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    options.run(options)


def test_help_is_light() -> None:
    code = (
        "import sys, argparse; from ghn_init.cli.analysis import add_parsers; "
        "add_parsers(argparse.ArgumentParser().add_subparsers()); "
        "print({'torch', 'matplotlib', 'scipy', 'networkx'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_draw(
    zoo: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("draw", f"{zoo}:small", "-o", str(tmp_path / "a.dot"), "--ghn", checkpoint,
        "--num-classes", "5")  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith("small: 9 nodes, 8 edges, average degree 1.78")
    assert "classification layer of 5 classes, the checkpoint's has 1000" in printed
    assert printed.endswith(f"written to {tmp_path / 'a.dot'}\n")
    assert (tmp_path / "a.dot").read_text().startswith('digraph "small"')
    shape = ("--input-shape", "3x16x16")
    run("draw", f"{zoo}:small", "--json", *shape, "--ghn", checkpoint)
    assert json.loads(capsys.readouterr().out)["coverage"] == 1
    run("draw", f"{zoo}:small", *shape, "--ghn", checkpoint, "--head", "keep")
    assert 'last layer kept (head="keep")' in capsys.readouterr().out


def test_draw_says_how_far_it_is_where_it_takes_long(
    zoo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 1e-9)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    run("draw", f"{zoo}:small", "--input-shape", "3x16x16", "-o", str(tmp_path / "a.dot"))
    shown = [line.rpartition("done=")[2] for line in capsys.readouterr().err.splitlines()]
    assert list(dict.fromkeys(shown)) == ["model]", "graph]", "picture]"]


def test_draw_says_what_export_says(
    zoo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the checkpoint that is at hand; of another number of classes it predicts no head."""
    run("draw", f"{zoo}:small", "--input-shape", "3x16x16")
    drawn = capsys.readouterr().out.splitlines()[0].rpartition("average path ")[2]
    model, _ = create_model(f"{zoo}:small")
    report = ghn_init.apply(model, ghn="embedded", return_report=True)[1]
    assert drawn.endswith(f"{100 * report.coverage:.2f}% of the parameters predicted by embedded")
    assert report.coverage < 1


def test_a_folder_that_is_missing(zoo: str, tmp_path: Path) -> None:
    """It is noticed before anything long is computed."""
    with pytest.raises(GHNInitError, match=r"cannot write.*no writable folder"):
        run("diagnose", "no such model", "-o", str(tmp_path / "missing" / "a.png"))


def test_diagnose(zoo: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diagnose", f"{zoo}:small", "--input-shape", "3x16x16", "--batch-size", "2"]
    run(*command, "--methods", "rand,ghn3-orth", "--ghn", checkpoint)
    printed = capsys.readouterr()
    assert printed.out.startswith("small: 3 layers, 2 random images of 3x16x16\n")
    assert "ghn3-orth: " in printed.out
    run(*command, "--methods", "rand", "--layers", "0.weight", "--json")
    assert list(json.loads(capsys.readouterr().out)["methods"][0]["spectra"]) == ["0.weight"]


def test_diversity(zoo: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("diversity", f"{zoo}:small", f"{zoo}:wide", "--ghn", checkpoint, "--shape", "4x3x3x3",
        "--shape", "1000x8")  # fmt: skip
    assert "4x3x3x3  1000x8" in capsys.readouterr().out


def test_embed(zoo: str, checkpoint: str, tmp_path: Path,
               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    models = [f"{zoo}:small", f"{zoo}:wide"]
    run("embed", *models, "--ghn", checkpoint, "--color", "family")
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "small"
    (tmp_path / "t.csv").write_text("model,top1\nsmall,3.5\n")
    run("embed", *models, "--ghn", checkpoint, "--color", "top1", "--table",
        str(tmp_path / "t.csv"), "--json")  # fmt: skip
    content = json.loads(capsys.readouterr().out)
    assert [model["top1"] for model in content["models"].values()] == [3.5, None]
    run("embed", *models, "--ghn", checkpoint, "--embeddings", str(tmp_path / "e.safetensors"))
    assert set(load_file(tmp_path / "e.safetensors")) == {
        *("small", "small/nodes", "wide", "wide/nodes"),
    }
    with pytest.raises(GHNInitError, match=r"not what \.npz says"):
        run("embed", *models, "--ghn", checkpoint, "--embeddings", str(tmp_path / "e.npz"))
    with pytest.raises(GHNInitError, match="--color top1 needs --table"):
        run("embed", *models, "--ghn", checkpoint, "--color", "top1")


def test_embed_takes_the_default_checkpoint(
    zoo: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def load_default(arch: str) -> tuple[ghn_init.GHN, str]:
        asked.append(arch)
        return ghn_init.load_ghn(checkpoint), ""

    monkeypatch.setattr(embedding, "load_default", load_default)
    run("embed", f"{zoo}:small", f"{zoo}:wide")
    assert asked == ["ghn3"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("model", "small", "wide"),
    ]


def test_diagnose_takes_methods_with_settings(
    zoo: str, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("diagnose", f"{zoo}:small", "--input-shape", "3x16x16", "--ghn", checkpoint,
        "--methods", "rand, ghn3:norms=predict,noise=0, ghn3-orth:orth_start=2")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == [
        *("rand", "ghn3:norms=predict,noise=0", "ghn3-orth:orth_start=2"),
    ]


def test_rank(zoo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20), (40 * i, 90, 7)).save(
                tmp_path / "images" / label / f"{i}.png"
            )
    (tmp_path / "t.json").write_text('{"small": 1, "wide": 2}')
    command = ["rank", f"{zoo}:small", f"{zoo}:wide", "--data", str(tmp_path / "images")]
    run(*command, "--table", str(tmp_path / "t.json"), "--metrics", "snip,synflow",
        "--batch-size", "4")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "accuracy", "snip", "synflow"]
    assert lines[-1].split()[:3] == ["Kendall's", "tau", "-"]


# -- models


def test_models_in_a_file(zoo: str) -> None:
    state = torch.get_rng_state()
    a, b = (load_model(f"{zoo}:small", num_classes=7, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a[0].weight, b[0].weight)
    assert a[6].out_features == 7
    assert not torch.equal(a[0].weight, load_model(f"{zoo}:small").get_parameter("0.weight"))
    assert short_name(f"{zoo}:small") == "small"
    assert short_name("resnet18") == "resnet18"


def test_lazy_models(zoo: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(FACTORY)
    models = LazyModels([f"{zoo}:small", f"{zoo}:wide", "alexnet"], "torchvision")
    assert list(models) == ["small", "wide", "alexnet"]
    assert models["wide"][0].out_channels == 8
    assert models.families() == {"small": "small", "wide": "wide", "alexnet": "alexnet"}
    both = LazyModels([f"{zoo}:small", f"{tmp_path / 'other.py'}:small"])
    assert len(both) == 2
    assert all(isinstance(model, nn.Module) for model in both.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py:small", "No such file"),
        ("ZOO:missing", "has no attribute 'missing'"),
        ("ZOO:broken", "it does not work"),
        ("ZOO:number", "gives a int"),
        ("resnet1", "no model 'resnet1'"),
    ],
)
def test_no_such_model(name: str, message: str, zoo: str) -> None:
    with pytest.raises(GHNInitError, match=message) as caught:
        load_model(name.replace("ZOO", zoo))
    assert len(str(caught.value).splitlines()) == 1


def test_no_pretrained_weights(zoo: str) -> None:
    with pytest.raises(GHNInitError, match="no pretrained weights that are known"):
        create_model(f"{zoo}:small", pretrained=True)


def test_missing_extra(
    zoo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures say how to install what they need, before anything is computed."""

    there = importlib.import_module

    def import_module(name: str) -> object:
        if name.split(".")[0] in ("matplotlib", "scipy"):
            raise ImportError(name)
        return there(name)

    monkeypatch.setattr(extra.importlib, "import_module", import_module)
    for command in (["draw", f"{zoo}:small"], ["diagnose", f"{zoo}:small", "--methods", "rand"]):
        with pytest.raises(GHNInitError, match="needs matplotlib: pip install matplotlib scipy"):
            run(*command, "-o", str(tmp_path / "a.png"))
    with pytest.raises(GHNInitError, match="needs scipy: pip install matplotlib scipy"):
        run("diversity", f"{zoo}:small", "--methods", "rand")
    assert capsys.readouterr().out == ""
    run("draw", f"{zoo}:small")  # the table needs nothing
    assert capsys.readouterr().out.startswith("small: 9 nodes")


def readme_commands() -> list[str]:
    """The commands of the README, as they stand there."""
    text = (Path(ghn_init.__file__).parent / "analysis" / "README.md").read_text(encoding="utf-8")
    _, _, block = text.partition("```sh\n")
    return block.partition("```")[0].splitlines()


def test_readme_has_every_command() -> None:
    named = [command.split()[:2] for command in readme_commands()]
    assert named == [["ghn-init", c] for c in ("draw", "diagnose", "diversity", "embed", "rank")]


@pytest.mark.slow
@pytest.mark.parametrize("command", readme_commands())
def test_readme(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for i, label in enumerate(("cat", "dog")):
        (tmp_path / "cifar10" / label).mkdir(parents=True)
        for j in range(4):
            image = Image.new("RGB", (32, 32), (60 * i, 50 * j, 9))
            image.save(tmp_path / "cifar10" / label / f"{j}.png")
    rows = "model,top1\nresnet18,70\nresnet34,73\nmobilenetv3_small_100,67\n"
    (tmp_path / "accuracies.csv").write_text(rows)
    words = command.split()[1:]
    run(*words)
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).stat().st_size > 1000
