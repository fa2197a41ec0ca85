"""examples/reproduce/properties.py: the regression, and runs on tiny data at both scales."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ghn_init.train import make_nets

Script = Callable[[str], ModuleType]
Start = Callable[..., str]

NEEDS = "scikit-learn is not installed: the example alone needs it"


@pytest.fixture
def sklearn() -> None:
    pytest.importorskip("sklearn", reason=NEEDS)
    pytest.importorskip("scipy", reason="Kendall's tau needs the extra [plot]")


def test_it_says_what_is_missing(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(SystemExit, match="this needs scikit-learn: pip install scikit-learn"):
        script("properties").regression()


@pytest.mark.usefixtures("sklearn")
def test_the_regression(script: Script) -> None:
    """What depends on the vectors is predicted, noise is not: nothing of the truth leaks."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 8))
    values = 50 + 7 * np.tanh(inputs[:, 0]) + 3 * inputs[:, 1]
    unseen = script("properties").unseen
    assert np.corrcoef(unseen(inputs, values, 0), values)[0, 1] > 0.8
    assert np.corrcoef(unseen(inputs, values, 40), values[40:])[0, 1] > 0.8
    assert abs(np.corrcoef(unseen(random.normal(size=(60, 8)), values, 0), values)[0, 1]) < 0.35
    changed = np.concatenate([values[:40], random.normal(size=20)])
    assert np.array_equal(unseen(inputs, values, 40), unseen(inputs, changed, 40))


@pytest.mark.usefixtures("sklearn")
def test_the_regression_is_svr(script: Script) -> None:
    """By the conditions that define its solution (epsilon-SVR with an RBF kernel)."""
    random = np.random.default_rng(1)
    inputs, values = random.normal(size=(40, 3)), random.normal(size=40)
    fitted = script("properties").regression().fit(inputs, values).best_estimator_
    scaler, svr = fitted.regressor_[0], fitted.regressor_[1]
    x = (inputs - inputs.mean(0)) / inputs.std(0)
    np.testing.assert_allclose(scaler.transform(inputs), x)
    y = (values - values.mean()) / values.std()
    gamma = svr._gamma
    kernel = np.exp(-gamma * ((x[:, None] - x[svr.support_][None]) ** 2).sum(-1))
    predicted = kernel @ svr.dual_coef_[0] + svr.intercept_[0]
    found = fitted.predict(inputs)
    np.testing.assert_allclose(found, predicted * values.std() + values.mean(), rtol=1e-6)
    weights = np.zeros(40)
    weights[svr.support_] = svr.dual_coef_[0]
    residuals = y - predicted
    assert np.abs(weights).max() <= svr.C + 1e-9
    assert weights.sum() == pytest.approx(0, abs=1e-6)
    free = (np.abs(weights) > 1e-8) & (np.abs(weights) < svr.C - 1e-8)
    np.testing.assert_allclose(np.abs(residuals[free]), svr.epsilon, atol=5e-3)
    assert (np.abs(residuals[weights == 0]) <= svr.epsilon + 5e-3).all()


@pytest.mark.slow
@pytest.mark.usefixtures("sklearn")
def test_small_scale(start: Start, script: Script, small_images: Path, out: Path,
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    command = ("properties", "--data", small_images, "--out", out, "--steps", 1,
               "--batch-size", 4, "--images", 0, 0, "--count", 13, 0)  # fmt: skip
    printed = start(*command)
    content = json.loads((out / "properties.json").read_text())
    assert len(content["parameters"]) == 13
    kendalltau = pytest.importorskip("scipy.stats").kendalltau
    for name in script("properties").PROPERTIES:
        predicted = content["predicted"]["embedded"][name]
        tau = kendalltau([content["truth"][name][n] for n in predicted], list(predicted.values()))
        expected = None if np.isnan(tau.statistic) else pytest.approx(tau.statistic)
        assert content["tau"]["embedded"][name] == expected, name
    assert all(value > 0 for value in content["truth"]["speed"].values())
    monkeypatch.setattr(script("properties"), "fine_tune", None)  # nothing is trained again
    assert start(*command) == printed
    start(*command, "--embeddings", out / "embeddings-embedded.safetensors")
    saved = json.loads((out / "properties.json").read_text())
    assert saved["predicted"]["embeddings-embedded"] == content["predicted"]["embedded"]


def test_noise_makes_it_harder(script: Script, small_images: Path) -> None:
    """The accuracy under noise is that of the noisy images, and the same every time."""
    properties = script("properties")
    data = properties.load_split(str(small_images), 32)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(3, 10))
    with torch.no_grad():  # the level of a picture decides, which noise hardly changes
        x, labels = next(iter(data.test.test_batches(30)))
        levels = torch.stack([x[labels == i].mean() for i in range(10)])
        model[2].weight.copy_(2 * levels[:, None].expand(10, 3))
        model[2].bias.copy_(-3 * levels.square())
    first, second = (properties.under_noise(model, data) for _ in range(2))
    assert first == second == 100
    assert properties.speed(model, data) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("sklearn")
def test_paper_scale(start: Start, small_images: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The same code on ten networks of DeepNets-1M, with a seeded checkpoint."""
    for split in ("val", "test"):
        make_nets(split, 10, tmp_path / "nets", workers=1)
    printed = start("properties", "--scale", "paper", "--data", small_images, "--ghn", checkpoint,
                    "--nets", tmp_path / "nets", "--out", tmp_path / "out", "--steps", 1,
                    "--batch-size", 4, "--count", 10, 5)  # fmt: skip
    assert "Kendall's tau over 5 networks, learned from 10" in printed
