"""Evaluation, and the commands of `ghn-init train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.images import load_images
from ghn_init.seeds import torch_generator
from ghn_init.train.config import Evaluation, TrainConfig
from ghn_init.train.evaluation import accuracy, evaluate
from ghn_init.train.init import initialize
from ghn_init.train.networks.generate import sample
from ghn_init.train.networks.network import Network

QUIET = Evaluation(batch_size=8, control=2, quiet=True)
NETS = [sample("test", i).resized(8, 16) for i in (0, 2, 5)]
TINY = TrainConfig("", steps=1, nets="", hidden_size=16, layers=1)


def test_networks_are_evaluated_with_predicted_and_random_parameters(image_folder: Path) -> None:
    images = load_images(f"imagefolder:{image_folder}", "test")
    ghn = initialize(TINY, 2)
    found = evaluate(ghn, NETS, images, "test", QUIET)
    assert len(found.predicted) == len(found.random) == 3
    assert all(0 <= value <= 100 for value in found.predicted + found.random)
    assert "3 nets" in found.summary()
    network = Network(NETS[1], 2)
    random = network.random_params(torch_generator(0, "control", 1))
    assert accuracy(network, random, images, QUIET, 2) == found.random[1]


def test_an_evaluation_goes_on_where_it_stopped(image_folder: Path, tmp_path: Path) -> None:
    images = load_images(f"imagefolder:{image_folder}", "test")
    ghn, file = initialize(TINY, 2), tmp_path / "test.json"
    whole = evaluate(ghn, NETS, images, "test", QUIET)
    evaluate(ghn, NETS[:2], images, "test", QUIET, file)
    content = json.loads(file.read_text())
    content["accuracies"][0][0] = 12.5  # is kept, not measured again
    file.write_text(json.dumps(content))
    resumed = evaluate(ghn, NETS, images, "test", QUIET, file)
    assert resumed.predicted == (12.5, *whole.predicted[1:])
    with pytest.raises(GHNInitError, match=r"with other settings: ghn \("):
        evaluate(initialize(replace(TINY, seed=1), 2), NETS, images, "test", QUIET, file)
    others = load_images(f"imagefolder:{image_folder}", "train")
    others = others.subset(torch.arange(len(images.labels)))
    with pytest.raises(GHNInitError, match=r"with other settings: labels \("):
        evaluate(ghn, NETS, others, "test", QUIET, file)


def test_other_classes_are_refused(image_folder: Path) -> None:
    images = load_images(f"imagefolder:{image_folder}", "test")
    ghn = initialize(TINY, 10)
    with pytest.raises(GHNInitError, match="predicts 10 classes"):
        evaluate(ghn, NETS, images, "test", QUIET)


def test_from_architectures_to_accuracies(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets, out, data = tmp_path / "nets", tmp_path / "run", f"imagefolder:{image_folder}"
    for split in ("train", "test"):
        assert main(["train", "make-nets", "--split", split, "--count", "4", "-o", str(nets)]) == 0
    small = ["--hidden-size", "16", "--layers", "1", "--meta-batch", "2", "--batch-size", "20"]
    widths = ["--channels", "8", "--fc-dims", "16", "--max-params", "1"]
    where = ["--nets", str(nets), "--data", data, "--device", "cpu"]
    run = ["train", "run", *where, *small, *widths, "--out", str(out), "--epochs", "1"]
    run += ["--holdout", "8"]
    assert main(run) == 0
    assert capsys.readouterr().out.endswith("ghn.safetensors\n")
    ghn = str(out / "ghn.safetensors")
    some = ["--num-nets", "2", "--num-images", "12"]
    assert main(["train", "eval", "--ghn", ghn, *where, *some]) == 0
    assert "2 nets  predicted" in capsys.readouterr().out
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--nets", "x", "--data", "y", "--max-steps", "1", "--out", str(tmp_path)]
    assert main(["train", "run", *arguments, "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("ghn-init: there are no train architectures in x")
