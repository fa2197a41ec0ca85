"""Methods that learn or measure factors agree with the code of their authors (see `small_nets`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_nets import PlainNet, ResidualNet, batch
from torch import nn

import ghn_init

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "initializers.json").read_text())


def factors(model: nn.Module, start: dict[str, torch.Tensor]) -> dict[str, float]:
    """How much larger each parameter is than it was; it must not have turned."""
    found = {}
    for name, param in model.named_parameters():
        if (before := start[name]).any():
            found[name] = float((param.detach() * before).sum() / before.square().sum())
            assert torch.allclose(param, before * found[name], atol=1e-5), name
    return found


CASES = {
    "gradinit plain sgd": (PlainNet, "gradinit:steps=12,batch=16,lr=0.03,gamma=0.17"),
    "gradinit plain adam": (
        PlainNet,
        "gradinit:steps=12,batch=16,lr=0.03,eta=0.003,gamma=3,optimizer=adam",
    ),
    "gradinit residual sgd": (ResidualNet, "gradinit:steps=12,batch=16,lr=0.03"),
    "nio plain": (PlainNet, "nio:steps=12,batch=16,lr=0.03,gamma=0.45"),
    "metainit plain": (PlainNet, "metainit:steps=8,batch=16,lr=0.05"),
    "metainit residual": (ResidualNet, "metainit:steps=8,batch=16,lr=0.05"),
}


@pytest.mark.parametrize("case", CASES)
def test_learned_factors(case: str) -> None:
    build, method = CASES[case]
    model, (images, labels) = build(), batch()
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    given = {"images": images, "labels": labels}
    given = {} if "metainit" in case else given
    ghn_init.apply(model, method, **given, example_inputs=images[:2])
    found, recorded = factors(model, start), RECORDED[case]
    assert any(abs(factor - 1) > 0.1 for factor in found.values())
    for name, factor in found.items():
        assert factor == pytest.approx(recorded[name][0], rel=1e-3), name


def test_unit_variance() -> None:
    model, (images, _) = PlainNet(bias=False, gain=0.4), batch()
    images = images / model.convs[0](images).std(correction=0).detach()  # theirs skips this layer
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    ghn_init.apply(model, "rand+lsuv", images=images)
    for name, factor in factors(model, start).items():
        assert factor == pytest.approx(RECORDED["lsuv plain"][name][0], rel=1e-4), name
