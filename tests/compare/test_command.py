"""`ghn-init compare`, from the outside."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from ghn_init.analysis import extra as extra
from ghn_init.cli.main import main


@pytest.fixture
def command(models: Path, image_folder: Path) -> list[str]:
    return [
        *("compare", f"{models}:small", "--data", str(image_folder), "--image-size", "16"),
        *("--device", "cpu", "--batch-size", "8", "--steps", "4", "--seeds", "2"),
    ]


# Python shows users no such warnings of libraries (matplotlib 3.8 has some); pytest does.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compare(
    command: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "small"
    command += ["--methods", "rand,ghn3-orth:noise=0", "--ghn", str(checkpoint), "--out", str(out)]
    command += ["--labels", "20", "--val", "10", "--lr", "1e-2", "1e-3", "--reach", "1", "99.5"]
    assert main([*command, "--test-images", "12"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "small: 20 images of 2 classes, 4 steps of 8 (1.6 epochs), adamw, fp32"
    assert lines[1] == "accuracy in percent on 12 test images, 2 seeds"
    assert "the best of 2 on 10 training images that are held out" in lines[2]
    assert lines[5].split() == [
        *("method", "predicted", "lr", "decay", "accuracy", "std", "to", "1%", "to", "99.5%"),
        *("init", "(s)"),
    ]
    assert [line.split()[0] for line in lines[6:8]] == ["rand", "ghn3-orth:noise=0"]
    assert lines[9].startswith("  ghn3-orth:noise=0 - rand: ")
    assert len(json.loads((out / "results.json").read_text())["runs"]) == 8
    assert main([*command, "--test-images", "12"]) == 0
    assert capsys.readouterr() == printed
    assert main([*command, "--test-images", "11"]) == 1
    assert "other settings: test images" in capsys.readouterr().err


def test_json_and_the_picture(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    command = [*command, "--methods", "rand", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)["methods"]) == ["rand"]
    assert printed.err.endswith(f"written to {tmp_path}: results.json, curves.png\n")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "curves.png").unlink()

    there = importlib.import_module

    def import_module(name: str) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name)

    monkeypatch.setattr(extra.importlib, "import_module", import_module)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert said.endswith("no picture: this needs matplotlib: pip install matplotlib scipy.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_epochs(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*command[: command.index("--steps")], "--epochs", "0.5", "--seeds", "1"]
    assert main([*command, "--methods", "rand", "--optimizer", "sgd"]) == 0
    printed = capsys.readouterr().out
    assert "48 images of 2 classes, 3 steps of 8 (0.5 epochs), sgd" in printed
    assert printed.splitlines()[-1].split()[:4] == ["rand", "-", "0.01", "0.01"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--methods", "rand", "--lr", "1", "2"], "1000 to choose on are asked for, of 48"),
        (["--methods", "rand", "--device", "nonsense"], "cannot compute on 'nonsense'"),
        (["--methods", "rand", "--data", "nowhere"], "there is no folder nowhere: give"),
        (["--methods", "rand", "--lr", "-1"], "lr is -1.0: give more than 0"),
        (["--methods", "rand", "--lr", "nan"], "lr is nan: give more than 0"),
        (["--methods", "rand", "--weight-decay", "-1"], "weight_decay is -1.0: give 0 or more"),
        (["--methods", "rand", "--clip", "-1"], "clip is -1.0: give 0 or more"),
        (["--methods", "rand", "--batch-size", "0"], "batch_size is 0: give 1 or more"),
        (["--methods", "rand", "--steps", "0"], "steps is 0: give 1 or more"),
        (["--methods", "rand", "--eval-every", "-1"], "eval_every is -1: give 0 or more"),
        (["--methods", "rand", "--image-size", "0"], "the image size is 0: give 1 or more"),
        (["--methods", "rand", "--labels", "-1"], "give smaller numbers from 0 up"),
        (["--methods", "rand", "--val", "-1", "--lr", "1", "2"], "give smaller numbers from 0"),
        (["--methods", "rand", "--test-images", "-1"], "-1 test images are asked for"),
        (["--methods", "rand", "--seeds", "0"], "seeds is 0: give 1 or more"),
        (["--methods", "rand", "--reach", "nan"], "reach is nan: give accuracies from 0 to 100"),
        (["--methods", "rand", "--optimizer", "magic"], "optimizer is 'magic'"),
        (["--methods", "rand", "--library", "timm", "--out", "FILE/x"], "cannot use the folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, command: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    arguments = [argument.replace("FILE", str(tmp_path / "file")) for argument in arguments]
    assert main([*command, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("epochs", ["0", "-1", "inf", "nan"])
def test_epochs_that_are_none(
    epochs: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = command[: command.index("--steps")]
    assert main([*command, "--methods", "rand", "--epochs", epochs]) == 1
    assert f"epochs is {float(epochs)}: give a number above 0" in capsys.readouterr().err


def test_pretrained_is_a_row_or_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command, "--seeds", "1", "--methods"]
    assert main([*command, "rand,pretrained"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[-1:]] == ["rand"]
    lines = [line for line in printed.err.splitlines() if "pretrained is left out" in line]
    assert len(lines) == 1
    assert "has no pretrained weights that are known here" in lines[0]
    assert main([*command, "pretrained"]) == 1
    assert "no pretrained weights" in capsys.readouterr().err


def test_source(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--seeds", "1", "--out", str(tmp_path)]
    file = tmp_path / "none.safetensors"
    assert main([*command, *out, "--methods", "select", "--source", str(file)]) == 1
    assert f"source: there is no file {file}" in capsys.readouterr().err
    assert main([*command, *out, "--methods", "select"]) == 1
    assert "needs source" in capsys.readouterr().err
