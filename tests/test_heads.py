"""Last layers: found by the graph, and kept unless they classify as the checkpoint does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from models import ConvNet
from test_apply import seeded, state
from torch import Tensor, nn

import ghn_init


def last(model: nn.Module, *inputs: Tensor) -> list[str]:
    """Names of the modules whose weight is a last layer's."""
    heads = ghn_init.trace(model, inputs or None).heads
    assert heads is not None
    return [weight.removesuffix(".weight") for weight, _ in heads]


@pytest.mark.parametrize("stale", [10, 0, 1000])
@pytest.mark.parametrize("head", ["auto", "keep"])
def test_a_replaced_head_is_kept(stale: int, head: str) -> None:
    """Whatever number of classes the model still states."""
    model = ConvNet()
    model.num_classes = stale
    model.head = nn.Linear(8, 5)
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), head=head, return_report=True)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert torch.equal(model.head.weight, before["head.weight"])
    _, report = ghn_init.apply(model, ghn=seeded(), head="predict", return_report=True)
    assert "head.weight" in report.written
    assert "head.weight" not in report.postprocessed


def test_a_replaced_head_of_the_checkpoints_classes_is_predicted() -> None:
    model = ConvNet(classes=1000)
    model.num_classes = 1000
    model.head = nn.Linear(8, 10)
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.coverage == 1
    assert "head.weight" not in report.postprocessed


class Branches(nn.Module):
    """A trunk, and whatever is made of its map of 16 channels."""

    def __init__(self, end: Callable[[Branches, Tensor], object], **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.trunk = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.end = end
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.end(self, F.relu(self.trunk(F.relu(self.stem(x)))))


def boxes(net: Branches, x: Tensor) -> object:
    """Scores and boxes at each place, and boxes that ReLU keeps positive."""
    return {
        "scores": net.a(x).sigmoid(),
        "boxes": net.b(x).flatten(2).exp(),
        "sides": net.c(x).relu(),
    }


def refined(net: Branches, x: Tensor) -> object:
    """A box, and a better one that is computed from it."""
    x = x.mean((2, 3))
    box = net.a(x).sigmoid()
    better = torch.logit(box, 1e-5) + net.c(F.relu(net.b(torch.cat([x, box], 1))))
    return box, better.sigmoid()


def mask(net: Branches, x: Tensor) -> object:
    """A product of embeddings, as in MaskFormer."""
    return torch.einsum("bqc,bchw->bqhw", net.a(x.flatten(2).mT), net.b(x))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Branches(boxes, a=nn.Conv2d(16, 5, 3), b=nn.Conv2d(16, 4, 1), c=nn.Conv2d(16, 2, 3)),
         "abc"),
        (Branches(refined, a=nn.Linear(16, 2), b=nn.Linear(18, 16), c=nn.Linear(16, 2)), "ac"),
        (Branches(mask, a=nn.Linear(16, 4), b=nn.Conv2d(16, 4, 1)), "ab"),
        (Branches(lambda net, x: x - net.a(x), a=nn.Conv2d(16, 16, 1)), ""),
        (Branches(lambda net, x: net.norm(net.a(x)), a=nn.Conv2d(16, 16, 1)), ""),
        (Branches(lambda net, x: F.gelu(net.a(x)), a=nn.Conv2d(16, 64, 1)), ""),
        (Branches(lambda net, x: F.relu(net.a(x)), a=nn.Conv2d(16, 64, 1)), ""),
        (Branches(lambda net, x: F.relu(net.a(x)).mean((2, 3)), a=nn.Conv2d(16, 64, 1)), "a"),
        (Branches(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(16, 8, 1),
                  b=nn.ConvTranspose2d(8, 1, 2)), ""),
        (Branches(lambda net, x: [net.a(x), x], a=nn.Conv2d(16, 8, 1)), "a"),
        (Branches(lambda net, x: net.a(x) + F.interpolate(net.b(x), x.shape[2:]),
                  a=nn.Conv2d(16, 9, 1), b=nn.Conv2d(16, 9, 1, 2)), "ab"),
    ],
    ids=["detector", "refinement", "masks", "residual", "norm", "inner activation", "features",
         "pooled scores", "transposed last", "scores and features", "two scales"],
)  # fmt: skip
def test_last_layers(model: Branches, expected: str) -> None:
    assert last(model, torch.zeros(2, 3, 16, 16)) == list(expected)


def test_an_image_is_made_by_a_last_layer() -> None:
    denoiser = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = denoiser

        def forward(self, x: Tensor) -> Tensor:
            return x - self.body(x)

    assert last(Residual()) == ["body.2"]


def test_backbones_have_no_last_layer() -> None:
    timm = pytest.importorskip("timm")
    for name in ("mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet10t", "vgg11"):
        assert last(timm.create_model(name, num_classes=0)) == [], name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("retinanet_resnet50_fpn", {"cls_logits", "bbox_reg"}),
        ("fcos_resnet50_fpn", {"cls_logits", "bbox_reg", "bbox_ctrness"}),
        ("maskrcnn_resnet50_fpn",
         {"cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits"}),
    ],
)  # fmt: skip
def test_detectors_keep_their_last_layers(name: str, expected: set[str]) -> None:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 64, "num_classes": 10}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)
    images = ([torch.rand(3, 64, 64)] * 2,)
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=images, return_report=True)
    kept = {n for n, reason in report.left.items() if "last layer" in reason}
    assert {n.split(".")[-2] for n in kept} == expected
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n in kept)


def test_auxiliary_classifiers_are_ordinary_beside_the_main_one() -> None:
    class Two(ConvNet):
        def __init__(self, classes: int) -> None:
            super().__init__(classes)
            self.aux = nn.Linear(8, classes)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            aux = self.aux(self.norm(self.stem(x)).mean((2, 3)))
            return aux, super().forward(x)

    _, report = ghn_init.apply(Two(10), ghn=seeded(), orth_start=1, return_report=True)
    assert report.coverage == 1
    assert "aux.weight" in report.postprocessed
    assert "head.weight" not in report.postprocessed
    _, report = ghn_init.apply(Two(7), ghn=seeded(), return_report=True)
    assert set(report.left) == {"aux.weight", "aux.bias", "head.weight", "head.bias"}
