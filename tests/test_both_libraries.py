"""Models that timm and torchvision both have get the same parameters, up to their names."""

from __future__ import annotations

import networkx as nx
import pytest
import timm
import torch
from models import timm_model, torchvision_model
from networkx.algorithms.isomorphism import DiGraphMatcher
from test_apply import seeded

import ghn_init
from ghn_init import Graph
from ghn_init.hypernetwork.encoding import shape4

SAME = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "densenet121": "densenet121",
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_800mf": "regnetx_008",
    "regnet_y_400mf": "regnety_004",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b3": "efficientnet_b3",
    "efficientnet_v2_s": "efficientnetv2_s",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "convnext_tiny": "convnext_tiny",
    "vit_b_16": "vit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
}

DIFFERENT = {
    # timm's VGG has convolutions for the first two fully connected layers.
    ("vgg11", "vgg11"): ({(4096, 25088, 1, 1)}, {(4096, 512, 7, 7)}),
    # timm's Swin V2 puts the query's and value's biases together from two parameters.
    ("swin_v2_t", "swinv2_tiny_window8_256"): ({(288,), (576,), (1152,), (2304,)}, set()),
}


def label(node: ghn_init.Node) -> tuple[str, tuple[int, ...] | None]:
    """A linear layer and a 1x1 convolution of one size are one thing to a hypernetwork."""
    if node.shape is None or len(node.shape) == 1:
        return node.op, node.shape
    return node.op, shape4(node.shape)


def as_networkx(graph: Graph) -> nx.DiGraph:
    result = nx.DiGraph(graph.edges)
    nx.set_node_attributes(result, dict(enumerate(map(label, graph.nodes))), "label")
    return result


@pytest.mark.parametrize("name", SAME)
def test_same_parameters(name: str) -> None:
    models = torchvision_model(name), timm_model(SAME[name])
    a, b = map(ghn_init.trace, models)
    matcher = DiGraphMatcher(as_networkx(a), as_networkx(b), lambda x, y: x["label"] == y["label"])
    assert matcher.is_isomorphic()
    ghn = seeded()
    tensors = [
        ghn_init.predict(m, ghn, g, head="predict") for m, g in zip(models, (a, b), strict=True)
    ]
    for i, j in matcher.mapping.items():
        x, y = a.nodes[i], b.nodes[j]
        for p, q in ((x.param, y.param), (x.norm_bias, y.norm_bias)):
            if p is None or x.op == "pos_enc":
                assert (p is None) == (q is None)
                continue
            torch.testing.assert_close(
                tensors[0][p].flatten(), tensors[1][q].flatten(), rtol=1e-4, atol=1e-6
            )
    assert len(tensors[0]) == len(tensors[1])


@pytest.mark.parametrize("names", DIFFERENT)
def test_where_the_implementations_differ(names: tuple[str, str]) -> None:
    a = [label(n) for n in ghn_init.trace(torchvision_model(names[0])).nodes]
    b = [label(n) for n in ghn_init.trace(timm_model(names[1])).nodes]
    only_a, only_b = DIFFERENT[names]
    assert {shape for _, shape in a if a.count((_, shape)) > b.count((_, shape))} == only_a
    assert {shape for _, shape in b if b.count((_, shape)) > a.count((_, shape))} == only_b


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224",
        "beit_base_patch16_224", "deit3_small_patch16_224", "maxvit_rmlp_pico_rw_256",
        "xcit_nano_12_p8_224", "pvt_v2_b0",
    ],
)  # fmt: skip
def test_fused_attention_on_and_off(name: str) -> None:
    graphs = []
    for fused in (True, False):
        timm.layers.set_fused_attn(fused)
        try:
            graphs.append(ghn_init.trace(timm_model(name)))
        finally:
            timm.layers.set_fused_attn(True)
    assert graphs[0].nodes == graphs[1].nodes
    assert graphs[0].edges == graphs[1].edges
    assert "msa" in {node.op for node in graphs[0].nodes}
