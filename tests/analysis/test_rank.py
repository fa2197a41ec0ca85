"""`rank`: Kendall's tau, the published table, and a run on a few images."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ConvNet
from PIL import Image
from torch import nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError
from ghn_init.analysis import Ranking, folder_batch, kendall_tau, rank, untrained_accuracy
from ghn_init.analysis.measure.columns import as_numbers, column, read_columns
from ghn_init.images import load_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of eight noisy images, in `train/` and `test/`."""
    folder = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for part, label, i in itertools.product(("train", "test"), ("cat", "dog"), range(8)):
        pixels = torch.randint(256, (40, 32, 3), generator=generator, dtype=torch.uint8)
        path = folder / part / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return folder


def seeded(classes: int) -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), classes), "seeded").eval()


def test_kendall_tau_by_counting_pairs() -> None:
    pytest.importorskip("scipy")
    a = {"p": 3.0, "q": 1.0, "r": 2.0, "s": 2.0, "t": 9.0, "only here": 0.0}
    b = {"p": 2.0, "q": 1.0, "r": 5.0, "s": 4.0, "t": 3.0, "only there": 0.0}
    signs = [
        math.copysign(1, (a[i] - a[j]) * (b[i] - b[j]))
        for i, j in itertools.combinations("pqrst", 2)
        if a[i] != a[j]
    ]
    assert kendall_tau(a, b) == pytest.approx(sum(signs) / math.sqrt(9 * 10))
    assert kendall_tau(a, {"p": 1.0}) is None
    assert kendall_tau(a, dict.fromkeys(a, 1.0)) is None


def test_table_13(shared: Path) -> None:
    """The published accuracies and gradient norms of the 74 PyTorch models.

    Gradient norms give Table 13's number. The accuracies, published after the paper, give others
    than its 0.08, 0.22 and 0.34, in the same order; and none with the fully trained models.
    """
    pytest.importorskip("scipy")
    table = read_columns(shared / "published" / "ghn3_results.jsonl")
    assert len(table) == 74

    def tau(truth: str, score: str) -> float:
        columns = [as_numbers(column(table, name, "table")) for name in (truth, score)]
        found = kendall_tau(*columns)
        assert found is not None
        return round(found, 2)

    assert tau("randinit-sota", "randinit-gradnorm") == 0.34
    names = ("ghn2", "ghn3-t", "ghn3")
    assert [tau("randinit-sgd1ep", name) for name in names] == [0.13, 0.14, 0.26]
    assert all(abs(tau("randinit-sota", name)) < 0.08 for name in names)


def test_batches(images: Path) -> None:
    batch = folder_batch(images, image_size=16, size=6)
    assert batch.images.shape == (6, 3, 16, 16)
    assert set(batch.labels.tolist()) <= {0, 1}
    assert batch.source == "6 images of images"
    again = folder_batch(images, image_size=16, size=6)
    assert torch.equal(batch.images, again.images)
    assert not torch.equal(batch.images, folder_batch(images, 16, 6, seed=1).images)
    assert len(folder_batch(images / "train", 16, 100).labels) == 16


def test_ranking(images: Path) -> None:
    pytest.importorskip("scipy")
    models = {f"width {w}": ConvNet(classes=2, width=w) for w in (8, 16, 24)}
    accuracies = {"width 8": 10.0, "width 16": 30.0, "width 24": 20.0, "another": 1.0}
    ghn = seeded(2)
    result = rank(models, accuracies, images, ghn=ghn, batch_size=4, images=8)
    assert list(result.scores) == [
        "ghn", "gradnorm", "snip", "fisher", "plain", "grasp", "synflow", "synflow-bn", "jacobcov",
    ]  # fmt: skip
    assert list(result.accuracies) == list(models)
    assert result.failures == ()
    for metric, scores in result.scores.items():
        assert result.taus[metric] == kendall_tau(accuracies, scores)
    for accuracy in result.scores["ghn"].values():
        assert accuracy in {100 * right / 8 for right in range(9)}
    assert json.loads(result.to_json())["tau"]["snip"] == result.taus["snip"]
    assert result.table().splitlines()[-1].startswith("Kendall's tau")
    pytest.importorskip("matplotlib")
    panels = result.plot().axes
    assert len(panels) == 12
    assert [text.get_text() for text in panels[0].texts] == list(models)


def test_it_goes_on_where_it_was_stopped(images: Path, tmp_path: Path) -> None:
    """Models that the file has are not even built again; other settings are refused."""
    pytest.importorskip("scipy")
    models = {f"width {w}": ConvNet(classes=2, width=w) for w in (8, 16)}
    accuracies = {"width 8": 10.0, "width 16": 30.0}
    how: dict[str, Any] = {
        "metrics": ["snip", "grasp"], "batch_size": 4, "input_shape": (3, 16, 16)
    }  # fmt: skip
    results = tmp_path / "scores.json"
    first = rank({"width 8": models["width 8"]}, accuracies, images, results=results, **how)
    assert first.taus == {"snip": None, "grasp": None}
    unbuilt = {**models, "width 8": nn.Identity()}
    again = rank(unbuilt, accuracies, images, results=results, **how)
    assert again == rank(models, accuracies, images, **how)
    other = rank(models, accuracies, images, **{**how, "input_shape": (3, 24, 24)})
    assert other.scores != again.scores
    with pytest.raises(GHNInitError, match=r"other settings: batch_size \(4 then, 8"):
        rank(models, accuracies, images, results=results, **{**how, "batch_size": 8})


def test_accuracy_without_training(images: Path) -> None:
    """A classifier whose weights are set, against its own outputs with the batch's statistics."""
    test = load_images(str(images), "test", 32)
    model = ConvNet(classes=2)
    ready = copy.deepcopy(model).train()
    with torch.no_grad():
        right = [(ready(x).argmax(1) == y).sum() for x, y in test.test_batches(4)]
    assert untrained_accuracy(model, test, batch_size=4) == 100 * sum(right).item() / 16
    given = ghn_init.apply(copy.deepcopy(model), "ghn3", ghn=seeded(2), noise=0)
    predicted = untrained_accuracy(given, test, batch_size=16)
    assert untrained_accuracy(model, test, seeded(2), batch_size=16) == predicted
    with pytest.raises(GHNInitError, match="the model 3, and it predicts 3: they must"):
        untrained_accuracy(ConvNet(classes=3), test)


def test_a_tau_over_some_of_the_models_says_so() -> None:
    pytest.importorskip("matplotlib")
    result = Ranking(
        {"a": 1.0, "b": 2.0, "c": 3.0},
        {"snip": {"a": 1.0, "b": 2.0, "c": 2.5}, "grasp": {"a": 1.0, "c": 2.0}},
        {"snip": 1.0, "grasp": 1.0},
        (("grasp", "b", "the score is not finite"),),
    )
    *_, failure, note = result.table().splitlines()
    assert failure == "grasp, b: the score is not finite"
    assert note == "note: tau of grasp is over 2 of 3 models"
    titles = [panel.get_title() for panel in result.plot().axes]
    assert titles == [
        "snip: \N{GREEK SMALL LETTER TAU} = 1.00",
        "grasp: \N{GREEK SMALL LETTER TAU} = 1.00 (2 of 3 models)",
    ]


def test_errors(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    models, accuracies = {"a": ConvNet(classes=2)}, {"a": 1.0}
    with pytest.raises(GHNInitError, match="there is no folder nowhere: give"):
        rank(models, accuracies, "nowhere")
    with pytest.raises(GHNInitError, match="there are no images in"):
        rank(models, accuracies, tmp_path / "images" / "train" / "cat")
    with pytest.raises(GHNInitError, match="no accuracy is given for a"):
        rank(models, {}, images)
    with pytest.raises(GHNInitError, match="unknown metric 'magic'"):
        rank(models, accuracies, images, metrics=["magic"])
    with pytest.raises(GHNInitError, match="give 2 or more"):
        rank(models, accuracies, images, batch_size=1)
    with pytest.raises(GHNInitError, match="predicts 10: they must be the same"):
        rank(models, accuracies, images, ghn=seeded(10), batch_size=4)
    with pytest.raises(GHNInitError, match="a has 1 outputs and the data labels up to 1"):
        rank({"a": ConvNet(classes=1)}, accuracies, images, batch_size=16)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "model,top1,family\nx,1.5,r\ny,2,\n"),
        ("a.json", '{"x": {"top1": 1.5, "family": "r"}, "y": {"top1": 2}}'),
        ("a.jsonl", '{"x": {"top1": "1.5", "family": "r"}}\n{"y": {"top1": 2}}\n'),
    ],
)
def test_columns(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    table = read_columns(path)
    assert as_numbers(column(table, "top1", name)) == {"x": 1.5, "y": 2.0}
    assert column(table, "family", name) == {"x": "r"}
    with pytest.raises(GHNInitError, match=f"no column 'top5' in {name}: .* top1, family"):
        column(table, "top5", name)
    with pytest.raises(GHNInitError, match="several columns"):
        column(table, None, name)
    with pytest.raises(GHNInitError, match="x has 'r' where a number is needed"):
        as_numbers(column(table, "family", name))


def test_a_single_column_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1.5}')
    assert column(read_columns(tmp_path / "a.json"), None, "a.json") == {"x": "1.5"}


@pytest.mark.parametrize("text", [None, "[1, 2]", "{", "\x00"])
def test_no_table(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GHNInitError, match="cannot read a table of models"):
        read_columns(path)
