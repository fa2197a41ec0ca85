from __future__ import annotations

import pytest
import torch
from models import ConvNet

import ghn_init
from ghn_init.weights.postprocess import (
    PostProcessing,
    add_noise,
    classifier_weights,
    correlation_spread,
    orthogonalize,
    weight_layers,
)


def orthogonalized(weight: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Of a single weight."""
    (result,), (deficient,) = orthogonalize(weight[None])
    return result, bool(deficient)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [(16, 3, 3, 3), (64, 4), (4, 64), (2, 2), (12, 12, 1, 1), (300, 400)]
)
def test_spread_is_that_of_the_correlation_matrix(shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    expected = torch.corrcoef(weight.reshape(shape[0], -1).double()).std().item()
    assert correlation_spread(weight).item() == pytest.approx(expected, rel=1e-5)


def test_spread_without_channels_to_compare() -> None:
    assert correlation_spread(random(1, 8)) == 0
    assert correlation_spread(torch.ones(4, 8)) == 0  # constant channels correlate with nothing
    mixed = torch.cat([random(3, 8), torch.ones(1, 8)])
    corr = torch.corrcoef(mixed).nan_to_num()
    assert correlation_spread(mixed).item() == pytest.approx(corr.std().item(), rel=1e-4)


def test_noise_follows_equation_1() -> None:
    weight = random(256, 16, 3, 3)
    noise = add_noise(weight, 0.5, torch.Generator().manual_seed(1)) - weight
    expected = 0.5 * correlation_spread(weight).item()
    assert noise.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean().item()) < 0.01 * expected
    again = add_noise(weight, 0.5, torch.Generator().manual_seed(1)) - weight
    assert torch.equal(noise, again)


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (64, 8), (8, 64), (32, 1, 3, 3), (5, 5)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonal_step_follows_equation_2(shape: tuple[int, ...], scale: float) -> None:
    weight = scale * random(*shape)
    result, deficient = orthogonalized(weight)
    assert not deficient
    assert result.shape == shape
    q = result.reshape(shape[0], -1)
    wide = q.shape[0] < q.shape[1]
    gram = q @ q.t() if wide else q.t() @ q
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    # w = Q R with a positive diagonal: unique, so Q^T w is upper triangular with that diagonal.
    matrix = weight.reshape(shape[0], -1)
    r = q @ matrix.t() if wide else q.t() @ matrix
    assert (r.diagonal() > 0).all()
    assert r.tril(-1).abs().max() < 1e-4 * scale * 10


def test_orthogonal_init_of_torch_is_the_same_step() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.nn.init.orthogonal_(torch.empty(12, 5, 3, 3))
        torch.manual_seed(3)
        drawn = torch.empty(12, 45).normal_()
    result, _ = orthogonalized(drawn.reshape(12, 5, 3, 3))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 8), torch.ones(8, 4), random(2, 16).repeat(4, 1)]
)
def test_rank_deficient_weights_are_completed_and_reported(weight: torch.Tensor) -> None:
    result, deficient = orthogonalized(weight)
    assert deficient
    gram = result @ result.t() if len(result) < result.shape[1] else result.t() @ result
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


def test_a_batch_is_each_weight_by_itself() -> None:
    weights = torch.stack([random(6, 4, 3, seed=seed) for seed in range(3)])
    weights[1] = 1
    results, deficient = orthogonalize(weights)
    assert deficient.tolist() == [False, True, False]
    for weight, result in zip(weights, results, strict=True):
        torch.testing.assert_close(result, orthogonalized(weight)[0])


def test_half_precision_is_computed_in_float32() -> None:
    result, _ = orthogonalized(random(16, 32).bfloat16())
    assert result.dtype == torch.bfloat16
    gram = result.float() @ result.float().t()
    torch.testing.assert_close(gram, torch.eye(16), atol=1e-2, rtol=0)


def test_layers_are_counted_from_one() -> None:
    assert PostProcessing(0, True, 37).first_layer(54) == 37
    assert PostProcessing(0, True, 0.685).first_layer(54) == 37
    assert PostProcessing(0, True, 1.0).first_layer(54) == 54
    assert PostProcessing(0, True, 0.0).first_layer(54) == 0


def test_layers_are_in_the_order_of_the_graph() -> None:
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))
    names = ["stem", "depthwise", "squeeze", "excite", "head"]
    assert weight_layers(graph) == [f"{name}.weight" for name in names]
    assert classifier_weights(graph) == {"head.weight"}
