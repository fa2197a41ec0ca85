from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import Attention, ConvNet, torchvision_model
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError, Graph
from ghn_init.graph.inputs import likely_inputs
from ghn_init.graph.meta_recorder import MetaRecorder
from ghn_init.graph.passes import record

RECORDED = json.loads(
    lzma.decompress((Path(__file__).parent / "data" / "graphs.json.xz").read_bytes())
)


def as_networkx(nodes: list[tuple[str | None, str]], edges: list[tuple[int, int]]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for i, (param, op) in enumerate(nodes):
        graph.add_node(i, label=(op, param))
    graph.add_edges_from(edges)
    return graph


def ours(graph: Graph) -> nx.DiGraph:
    return as_networkx([(node.param, node.op) for node in graph.nodes], graph.edges)


def same_graph(a: nx.DiGraph, b: nx.DiGraph) -> bool:
    return nx.is_isomorphic(a, b, node_match=lambda x, y: x["label"] == y["label"])


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything a trace might disturb, by identity and value."""
    modules = {
        name: (module.training, {k: id(v) for k, v in module.__dict__.items()})
        for name, module in model.named_modules()
    }
    tensors = {
        k: (id(v), v._version, v.clone()) for k, v in model.state_dict(keep_vars=True).items()
    }
    return {"modules": modules, "tensors": tensors}


def assert_same_snapshot(a: dict[str, object], b: dict[str, object]) -> None:
    assert a["modules"] == b["modules"]
    for (ida, va, ta), (idb, vb, tb) in zip(
        a["tensors"].values(), b["tensors"].values(), strict=True
    ):
        assert (ida, va) == (idb, vb)
        assert torch.equal(ta, tb)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_graph(name: str) -> None:
    """Isomorphic to the published implementation's graph: primitives and parameter names."""
    model = torchvision_model(name)
    recorded = as_networkx(RECORDED[name]["nodes"], RECORDED[name]["edges"])
    graph = ghn_init.trace(model.eval())
    assert same_graph(ours(graph), recorded)
    ((weight, bias),) = graph.classifiers
    assert graph.nodes[weight].shape[0] == 1000
    assert graph.nodes[bias].shape == (1000,)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "swin_t", "mobilenet_v3_small"])
def test_independent_of_mode_and_weights(name: str) -> None:
    model = torchvision_model(name).to_empty(device="cpu")
    for param in model.parameters():
        nn.init.zeros_(param)
    in_eval = ghn_init.trace(model.eval())
    for param in model.parameters():
        nn.init.constant_(param, float("nan"))
    in_training = ghn_init.trace(model.train())
    assert in_eval == in_training


def test_model_and_rng_are_untouched() -> None:
    class Caching(ConvNet):
        """Draws random numbers, flips coins, and caches tensors on itself."""

        def forward(self, x: Tensor) -> Tensor:
            self.cached = x * 2
            self.seen.append(x)
            x = F.dropout(x, training=True) + torch.rand(1) * random.random()
            return super().forward(x)

    model = Caching()
    model.seen = []
    model.norm.eval()
    before = snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    ghn_init.trace(model)
    assert_same_snapshot(before, snapshot(model))
    assert not hasattr(model, "cached")
    assert model.seen == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("name", ["maxvit_t", "swin_v2_t", "swin_v2_s", "swin_v2_b"])
def test_well_formed_where_the_published_graph_is_broken(name: str) -> None:
    model = torchvision_model(name)
    graph = ghn_init.trace(model)
    assert [node.op for node in graph.nodes].count("input") == 1
    assert graph.nodes[0].op == "input"
    assert nx.descendants(ours(graph), 0) == set(range(1, len(graph)))
    carried = {node.param for node in graph.nodes}
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)):
            assert f"{module_name}.weight" in carried
    last = graph.nodes[graph.classifiers[0][0]]
    assert last.param in ("classifier.5.weight", "head.weight")
    heads = sum(
        ".attn." in n or "attention" in n for n in carried if n and n.endswith("qkv.weight")
    )
    assert [node.op for node in graph.nodes].count("msa") == heads


def test_fused_attention_is_the_same_graph() -> None:
    x = torch.zeros(2, 5, 12)
    fused, spelled = (ghn_init.trace(Attention(fused), x) for fused in (True, False))
    assert fused == spelled
    ops = [node.op for node in fused.nodes]
    assert ops == [
        "input",
        *["conv", "bias"] * 2,
        "msa",
        "conv",
        "bias",
        "sum",
        "glob_avg",
        "conv",
        "bias",
    ]


def test_small_network_node_by_node() -> None:
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))
    assert [(node.op, node.param, node.shape) for node in graph.nodes] == [
        ("input", None, None),
        ("conv", "stem.weight", (8, 3, 3, 3)),
        ("bn", "norm.weight", (8,)),
        ("max_pool", None, (1, 1, 2, 2)),
        ("sep_conv", "depthwise.weight", (8, 1, 3, 3)),
        ("bias", "depthwise.bias", (8,)),
        ("conv", "squeeze.weight", (2, 8, 1, 1)),
        ("bias", "squeeze.bias", (2,)),
        ("conv", "excite.weight", (8, 2, 1, 1)),
        ("bias", "excite.bias", (8,)),
        ("cse", None, None),
        ("sum", None, None),
        ("glob_avg", None, None),
        ("conv", "head.weight", (10, 8)),
        ("bias", "head.bias", (10,)),
    ]
    chain = [(i, i + 1) for i in range(14)]
    assert graph.edges == sorted([*chain, (5, 10), (3, 11)])
    assert graph.nodes[2].norm_bias == "norm.bias"
    assert graph.left == {}
    assert graph.num_classes == 10


def test_gate_is_found_at_a_single_position() -> None:
    """At 1x1 resolution a gate has the size of its features; SiLU must not be taken for one."""
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 2, 2))
    assert [node.op for node in graph.nodes].count("cse") == 1

    class WithSiLU(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3), keepdim=True)
            x = self.squeeze(x)
            return self.excite(x * torch.sigmoid(x))

    graph = ghn_init.trace(WithSiLU(), torch.zeros(2, 3, 8, 8))
    assert "cse" not in [node.op for node in graph.nodes]


def test_in_place_writes_through_views() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(c, 4, 1, bias=False) for c in (3, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            out = x.new_empty(len(x), 8, *x.shape[2:])
            out[:, :4] = self.a(x)
            out[:, 4:] = self.b(x)
            return self.c(out)

    graph = ghn_init.trace(Writer(), torch.zeros(2, 3, 4, 4))
    assert [node.param for node in graph.nodes] == [None, "a.weight", "b.weight", "c.weight"]
    assert graph.edges == [(0, 1), (0, 2), (1, 3), (2, 3)]


def test_left_parameters_have_reasons() -> None:
    graph = ghn_init.trace(torchvision_model("vit_b_16"))
    assert list(graph.left) == ["class_token"]
    graph = ghn_init.trace(torchvision_model("convnext_tiny"))
    assert all(
        name.endswith("layer_scale") and "layer scale" in r for name, r in graph.left.items()
    )

    class Unused(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(3, 3)

    graph = ghn_init.trace(Unused(), torch.zeros(2, 3, 8, 8))
    assert set(graph.left.values()) == {"not used by the forward pass"}


def test_shared_layers_and_tied_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    graph = ghn_init.trace(Shared())
    assert [node.param for node in graph.nodes[1:]] == [
        "a.weight", "a.bias", "a.weight", "a.bias", "a.weight", "b.bias",
    ]  # fmt: skip


class OnACpu(ConvNet):
    """It insists on its device, which meta tensors do not have."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.zeros(1).device.type != "cpu":
            raise RuntimeError(f"not a place for me: {x.device}")
        return super().forward(x)


class AsksItself(ConvNet):
    """It asks a tensor that it makes for its value, which fake tensors know and meta ones don't."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.tensor(3) > 2:
            return super().forward(x)
        return x


@pytest.mark.parametrize("kind", [OnACpu, AsksItself])
def test_models_that_meta_tensors_cannot_run(kind: type[ConvNet]) -> None:
    assert ghn_init.trace(kind()) == ghn_init.trace(ConvNet())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_t"])
def test_remembered_sizes_do_not_change_the_graph(name: str) -> None:
    model = torchvision_model(name)
    MetaRecorder._known.clear()
    inputs = next(iter(likely_inputs(model)))
    cold = record(model, inputs)
    assert MetaRecorder._known
    warm = record(model, inputs)
    described = [[(call.name, call.size) for call in found.live()] for found in (cold, warm)]
    assert described[0] == described[1]


def _normed(x: Tensor) -> Tensor:
    ones = torch.ones_like(x[0, :, 0, 0])
    return F.batch_norm(x, torch.zeros_like(ones), ones, ones, training=True)


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        F.hardsigmoid,
        lambda x: F.hardswish(x, inplace=True),
        lambda x: x + x.double(),
        lambda x: x.half() * x.half(),
        lambda x: x > 0,
        lambda x: x.long() / 2,
        lambda x: x * x[:, :, :1],
        lambda x: x.transpose(1, 2).relu(),
        lambda x: x * torch.ones(x.shape[1]),
        _normed,
    ],
)
def test_what_is_made_of_one_size_is_made_of_others(function: Callable[[Tensor], Tensor]) -> None:
    MetaRecorder._known.clear()
    for shape in ((2, 3, 5, 3), (3, 4, 2, 4), (2, 6, 3, 6)):
        expected = function(torch.ones(shape))
        with torch.device("meta"), MetaRecorder():
            made = function(torch.ones(shape))
        assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
        assert made.stride() == expected.stride()


def test_torch_is_asked_for_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = MetaRecorder._run

    def counted(self: MetaRecorder, func: Any, *rest: Any) -> Any:
        asked.append(func.__name__)
        return run(self, func, *rest)

    MetaRecorder._known.clear()
    monkeypatch.setattr(MetaRecorder, "_run", counted)
    blocks = [nn.Sequential(nn.Conv2d(3, n, 1), nn.BatchNorm2d(n), nn.Hardswish()) for n in (4, 8)]
    for block in blocks:
        ghn_init.trace(block, torch.zeros(2, 3, 8, 8))
    for name in ("native_batch_norm.default", "hardswish.default"):
        assert asked.count(name) == 1, asked


def test_sizes_that_do_not_fit_are_still_refused() -> None:
    ghn_init.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.zeros(2, 3, 8, 8))
    for bad in (nn.BatchNorm2d(8), nn.PReLU(8)):
        with pytest.raises(GHNInitError, match="does not run"):
            ghn_init.trace(nn.Sequential(nn.Conv2d(3, 4, 1), bad), torch.zeros(2, 3, 8, 8))


def test_numbers_of_other_types_are_not_taken_for_the_remembered_ones() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float | bool) -> None:
            super().__init__()
            self.linear, self.factor = nn.Linear(3, 2), factor

        def forward(self, x: Tensor) -> Tensor:
            scaled = torch.arange(3, device=x.device) * self.factor
            assert scaled.is_floating_point() == (type(self.factor) is float)
            return self.linear(x * scaled)

    for factor in (1, 1.0, True):
        assert len(ghn_init.trace(Scaled(factor), torch.zeros(2, 3))) == 3


def test_a_parameter_that_asks_in_an_attention_has_its_reason() -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.zeros(1, 1, 1, 8))
            self.linear, self.head = nn.Linear(3, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)[:, None]
            query = self.query.expand(len(x), -1, -1, -1)
            return self.head(F.scaled_dot_product_attention(query, y, y).flatten(1))

    graph = ghn_init.trace(Pooling(), torch.zeros(2, 5, 3))
    assert list(graph.left) == ["query"]
    assert "multiplied with activations" in graph.left["query"]


def test_outputs_and_inputs_of_any_form() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Keywords(ConvNet):
        def forward(self, *, image: Tensor, scale: Tensor) -> Output:
            return Output(super().forward(image) * scale)

    inputs = {"image": torch.zeros(2, 3, 8, 8), "scale": torch.ones(2, 1)}
    graph = ghn_init.trace(Keywords(), inputs)
    assert graph.nodes[-1].param == "head.bias"
    assert [node.op for node in graph.nodes].count("input") == 1


def test_large_model_on_meta() -> None:
    with torch.device("meta"):
        graph = ghn_init.trace(nn.Linear(10**6, 10**6))
    assert graph.nodes[1].shape == (10**6, 10**6)


def test_torch_does_not_print_what_was_tried(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(GHNInitError, match=r"must have same reduction dim, [^.]*\. Pass example"):
        ghn_init.trace(model, torch.zeros(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")


def test_errors_leave_the_model_alone() -> None:
    class Failing(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            self.mark = 1
            raise ValueError("cannot run on this")

    model = Failing()
    before = snapshot(model)
    with pytest.raises(GHNInitError, match="cannot run on this"):
        ghn_init.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(GHNInitError, match=r"example_inputs.*Tried: "):
        ghn_init.trace(model)
    with pytest.raises(GHNInitError, match=r"does not run on the example input.*float32"):
        ghn_init.trace(ConvNet(), torch.zeros(2, 5, 8, 8))
    with pytest.raises(GHNInitError, match="example_inputs is a str"):
        ghn_init.trace(model, "image")
    with pytest.raises(GHNInitError, match="no parameters"):
        ghn_init.trace(nn.ReLU())
    with pytest.raises(GHNInitError, match=r"give a torch\.nn\.Module"):
        ghn_init.trace("resnet50")  # type: ignore[arg-type]
    assert_same_snapshot(before, snapshot(model))
    assert not hasattr(model, "mark")
