"""Running statistics of batch norms, set from a few batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from models import ConvNet
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(16, 3, 8, 8, generator=generator) for _ in range(4)]


def test_statistics_are_those_of_the_batches() -> None:
    """Of the one norm in this model, which sees the stem's output."""
    model = ConvNet().train()
    seen = [model.stem(x) for x in batches()]
    assert ghn_init.calibrate(model, batches()) is model
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, variance)
    assert model.norm.num_batches_tracked == 4


def test_modes_and_momentum_stay_and_dropout_sleeps() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 3, 1))
    model[2].eval()
    ghn_init.calibrate(model, [(x, "labels") for x in batches()])
    assert [module.training for module in model] == [True, True, False]
    assert model[1].momentum == 0.3
    expected = torch.stack([x.mean((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected)


def test_what_a_loader_gives_is_understood() -> None:
    class Named(ConvNet):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values)

    model = Named()
    ghn_init.calibrate(model, iter([{"pixel_values": x} for x in batches()]))
    assert model.norm.num_batches_tracked == 4


def test_an_error_leaves_the_statistics() -> None:
    def breaks() -> Iterator[Tensor]:
        yield batches()[0]
        yield torch.zeros(2, 5, 8, 8)  # another number of channels

    model = ConvNet().eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(GHNInitError, match="no batches"):
        ghn_init.calibrate(model, [])
    with pytest.raises(RuntimeError, match="channels"):
        ghn_init.calibrate(model, breaks())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not any(module.training for module in model.modules())
    assert model.norm.momentum == 0.1


def test_a_model_without_batch_norm_is_left() -> None:
    model = nn.Linear(3, 3)
    assert ghn_init.calibrate(model, []) is model
