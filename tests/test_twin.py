"""After `apply`, a model is as a fresh one that loads its state dict; nothing else has changed.

The slow check runs over the zoo: `pytest -m slow tests/test_twin.py -n 4`, or parts of it with
`-k timm` and the like.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from snapshots import differences, living_fakes, snapshot
from torch import nn
from zoo_models import TIMM_FAMILIES, ZOO, Entry, tensors

import ghn_init

_FAST = (
    "timm/efficientvit_msra",
    "timm/vision_transformer",
    "torchvision/fcos_resnet50_fpn",
    "torchvision/mobilenet_v3_small",
    "transformers/BeitForSemanticSegmentation",
    "transformers/DPTForDepthEstimation",
    "transformers/RTDetrForObjectDetection",
    "transformers/SegformerForSemanticSegmentation",
    "transformers/ViTMAEForPreTraining",
)


def built(entry: Entry, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return entry.build()


def deterministic(entry: Entry, model: nn.Module, training: bool) -> bool:
    """Whether two passes of one model give the same numbers, bit for bit."""
    state = copy.deepcopy(model.state_dict())  # with its versions, which MNASNet asks for
    passes = []
    for _ in range(2):
        model.load_state_dict(state)
        passes.append([t.clone() for t in tensors(entry.outputs(model.train(training)))])
    model.load_state_dict(state)
    return all(map(same, *passes))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))


def check_twin(entry: Entry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = built(entry, 0)
        own = built(entry, 0)  # what is not written has to be as in a model that apply did not see
        modes = [module.training for module in model.modules()]
        fakes = {id(tensor) for tensor in living_fakes()}
        before = snapshot(model)
        inputs = entry.inputs()
        _, report = ghn_init.apply(model, ghn="embedded", example_inputs=inputs, return_report=True)
    assert [id(t) for t in living_fakes() if id(t) not in fakes] == []
    assert differences(before, snapshot(model)) == []
    assert [module.training for module in model.modules()] == modes
    assert report.predicted, report
    params = dict(model.named_parameters(remove_duplicate=False))
    ids = {id(params[name]) for name in (*report.predicted, *report.postprocessed)}
    written = {name for name, param in params.items() if id(param) in ids}  # tied ones, too
    unwritten = dict(own.state_dict())
    for name, tensor in model.state_dict().items():
        assert name in written or same(tensor, unwritten[name]), f"{name} was written"
    twin = built(entry, 1)
    twin.load_state_dict(model.state_dict())
    for training in (False, True) if entry.training else (False,):
        if not deterministic(entry, twin, training):
            continue
        expected = list(tensors(entry.outputs(twin.train(training))))
        found = list(tensors(entry.outputs(model.train(training))))
        assert expected
        assert len(found) == len(expected)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert same(a, b), f"output {i} differs, training={training}"
        twin.load_state_dict(model.state_dict())  # what the passes do to batch norms


@pytest.mark.parametrize("name", _FAST)
def test_twin(name: str) -> None:
    if name.startswith(("timm", "transformers")):
        pytest.importorskip(name.partition("/")[0])
    check_twin(ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name not in _FAST])
def test_twin_of_the_zoo(name: str) -> None:
    if name.startswith(("timm", "transformers")):
        pytest.importorskip(name.partition("/")[0])
    check_twin(ZOO[name])


def test_zoo_has_every_timm_family() -> None:
    timm = pytest.importorskip("timm")
    assert set(timm.list_modules()) <= {*TIMM_FAMILIES}
