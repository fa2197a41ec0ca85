"""Models that nobody has named: layers outside of vision, wrappers, odd inputs and outputs."""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ConvNet, torchvision_model
from test_apply import equal, seeded, state
from torch import Tensor, nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError


def ops(graph: ghn_init.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_plain_mlp() -> None:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 10))
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.coverage == 1
    assert ops(ghn_init.trace(model)) == ["input", "conv", "bias", "ln", "conv", "bias"]


def test_one_dimensional_convolutions() -> None:
    layers = [nn.Conv1d(2, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.coverage == 1
    assert ops(ghn_init.trace(model)) == ["input", "conv", "bias", "bn", "glob_avg", "conv", "bias"]


def test_one_dimensional_convolution_with_one_output() -> None:
    """Its weight has the shape of a positional embedding, (1, tokens, channels)."""
    model = nn.Sequential(nn.Conv1d(8, 1, 3), nn.Flatten(), nn.Linear(14, 10))
    tensors = ghn_init.predict(model, seeded(), example_inputs=torch.zeros(2, 8, 16))
    assert tensors["0.weight"].shape == (1, 8, 3)


class Odd(nn.Module):
    """A layer that no primitive fits, between two that are predicted."""

    def __init__(self, layer: nn.Module, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.layer, self.after = before, layer, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        y = self.layer(y, y) if isinstance(self.layer, nn.Bilinear) else self.layer(y)
        return self.after(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (
            Odd(nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 1)),
            torch.zeros(2, 3, 8, 8),
            "transposed convolution",
        ),
        (
            Odd(
                nn.Conv3d(3, 4, 3), nn.Identity(), nn.Sequential(nn.Flatten(2), nn.Linear(216, 10))
            ),
            torch.zeros(2, 3, 8, 8, 8),
            "3-d convolution",
        ),
        (
            Odd(nn.LSTM(8, 8, batch_first=True), nn.Linear(4, 8), nn.Linear(8, 10)),
            torch.zeros(2, 5, 4),
            "no primitive",
        ),
        (
            Odd(nn.Embedding(50, 8), nn.Identity(), nn.Linear(8, 10)),
            torch.zeros(2, 5, dtype=torch.long),
            "no primitive",
        ),
        (
            Odd(nn.LayerNorm((4, 8, 8)), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 1)),
            torch.zeros(2, 3, 8, 8),
            "norm",
        ),
        (
            Odd(nn.Bilinear(4, 4, 4), nn.Linear(4, 4), nn.Linear(4, 10)),
            torch.zeros(2, 4),
            "",
        ),
        (
            Odd(nn.PReLU(4), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 1)),
            torch.zeros(2, 3, 8, 8),
            "no primitive",
        ),
    ],
)
def test_what_does_not_fit_is_left_and_the_rest_predicted(
    model: Odd, inputs: Tensor, reason: str
) -> None:
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=inputs, return_report=True)
    odd = {name for name in report.shapes if name.startswith("layer.")}
    assert set(report.left) == odd
    assert all(reason in text for text in report.left.values()), report.left
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]) == (name in odd), name


def test_group_and_rms_norm_are_layer_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 10, 1))
    assert ops(ghn_init.trace(model)) == ["input", "conv", "bias", "ln", "conv", "bias"]

    class HandMade(nn.Module):
        """Layer norm over channels, spelled out."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Linear(4, 8), nn.Linear(8, 10)
            self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = x - x.mean(-1, keepdim=True)
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.head(x * self.weight + self.bias)

    for model, name, bias in (
        (nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 10)), "1.weight", None),
        (HandMade(), "weight", "bias"),
    ):
        node = ghn_init.trace(model).nodes[3]
        assert (node.op, node.param, node.norm_bias) == ("ln", name, bias)


def test_weight_norm_predicts_the_direction() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 10, 1))
    _, report = ghn_init.apply(model, "ghn3", ghn=seeded(), return_report=True)
    assert "0.parametrizations.weight.original1" in report.predicted
    assert list(report.left) == ["0.parametrizations.weight.original0"]


def test_several_inputs_and_any_output() -> None:
    @dataclasses.dataclass
    class Result:
        classes: Tensor
        extra: dict[str, Tensor]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.table = ConvNet(8), nn.Linear(5, 8)
            self.aux, self.head = nn.Linear(8, 3), nn.Linear(8, 10)

        def forward(self, image: Tensor, table: Tensor) -> Result:
            x = self.image(image) + self.table(table)
            return Result(self.head(x), {"aux": self.aux(x)})

    inputs = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)
    for example in (inputs, dict(zip(("image", "table"), inputs, strict=True))):
        _, report = ghn_init.apply(Two(), ghn=seeded(), example_inputs=example, return_report=True)
        assert set(report.left) <= {"head.weight", "head.bias", "aux.weight", "aux.bias"}
    graph = ghn_init.trace(Two(), inputs)
    assert {"aux.weight", "head.weight"} <= {node.param for node in graph.nodes}


def test_wrapped_models_get_the_same_parameters() -> None:
    expected = state(ghn_init.apply(ConvNet(), ghn=seeded()))
    compiled = torch.compile(ConvNet())
    parallel = nn.DataParallel(ConvNet())
    for model, inner in ((compiled, compiled._orig_mod), (parallel, parallel.module)):
        result, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
        assert result is model
        assert equal(state(inner), expected)
        assert set(report.predicted) == dict(model.named_parameters()).keys()


def test_distributed_data_parallel(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(ConvNet())
        ghn_init.apply(model, ghn=seeded())
        assert equal(state(model.module), state(ghn_init.apply(ConvNet(), ghn=seeded())))
    finally:
        torch.distributed.destroy_process_group()


def test_frozen_parameters_can_be_included() -> None:
    model = ConvNet()
    for param in model.parameters():
        param.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.predicted == ("head.weight",)
    assert sum(not torch.equal(before[n], p) for n, p in model.named_parameters()) == 1
    _, report = ghn_init.apply(model, ghn=seeded(), include_frozen=True, return_report=True)
    assert len(report.predicted) == 11
    assert [p.requires_grad for p in model.parameters()].count(True) == 1


def test_several_heads() -> None:
    class Distilled(ConvNet):
        def __init__(self, classes: int) -> None:
            super().__init__(classes)
            self.other = nn.Linear(8, classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).mean((2, 3))
            return (self.head(x) + self.other(x)) / 2

    _, report = ghn_init.apply(Distilled(7), ghn=seeded(), return_report=True)
    heads = {"head.weight", "head.bias", "other.weight", "other.bias"}
    assert heads <= set(report.left)
    _, report = ghn_init.apply(Distilled(10), ghn=seeded(), return_report=True)
    assert heads <= set(report.predicted)
    assert not heads & set(report.postprocessed)


def test_a_model_without_classes_has_no_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1))
    assert ghn_init.trace(model).num_classes == 16
    model.num_classes = 0
    assert ghn_init.trace(model).num_classes is None


def test_detector_is_traced_on_numbers() -> None:
    """Which boxes it keeps depends on numbers: fake tensors do not have them."""

    class Detector(ConvNet):
        def forward(self, images: list[Tensor]) -> Tensor:
            if self.training:
                raise ValueError("targets should not be none when in training mode")
            x = F.relu(self.norm(self.stem(torch.stack(images))))
            kept = x.mean((2, 3))[x.mean((1, 2, 3)) > -1]
            return self.head(kept)

    model = Detector()
    graph = ghn_init.trace(model)
    assert {"stem.weight", "norm.weight", "head.weight"} <= {node.param for node in graph.nodes}
    assert ["evaluation mode" in n or "random numbers" in n for n in graph.notes] == [True, True]
    assert model.training


def test_a_branch_on_numbers_is_traced_in_training_mode() -> None:
    class Branching(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.stem(x)))
            if self.training:  # a part that evaluation mode would not show
                x = self.depthwise(x)
            x = x.mean((2, 3))
            return self.head(-x if x.sum() > 0 else x)

    graph = ghn_init.trace(Branching())
    assert "depthwise.weight" in {node.param for node in graph.nodes}
    assert [("random numbers" in n, "evaluation" in n) for n in graph.notes] == [(True, False)]


def test_hugging_face_vision_models() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**common, intermediate_size=64, image_size=32, patch_size=8)
    config.num_labels = 10
    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        model = transformers.ViTForImageClassification(config)
        _, report = ghn_init.apply(
            model, ghn=seeded(), example_inputs={"pixel_values": torch.zeros(2, 3, 32, 32)},
            return_report=True,
        )  # fmt: skip
        assert [name.split(".")[-1] for name in report.left] == ["cls_token"]
        assert report.coverage > 0.99


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "vit_b_16", "convnext_tiny"])
def test_layout_and_precision_do_not_change_the_graph(name: str) -> None:
    model = torchvision_model(name)
    plain = ghn_init.trace(model)
    assert ghn_init.trace(model.to(memory_format=torch.channels_last)) == plain
    assert ghn_init.trace(model.bfloat16()) == plain
    assert (
        ghn_init.trace(model, torch.zeros(1, 3, 224, 224, dtype=torch.bfloat16)).nodes
        == plain.nodes
    )


def test_two_hypernetworks_of_different_sizes() -> None:
    small = GHN(GHNConfig("ghn3", 8, 1, 8, (8, 8, 3, 3), 5)).requires_grad_(False)
    model = ConvNet(classes=5, width=24)  # wider and with larger kernels than it decodes
    tensors = ghn_init.predict(model, small)
    assert {n: t.shape for n, t in tensors.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    stem = tensors["stem.weight"]
    assert torch.equal(stem[:8], stem[8:16])


class Positions(nn.Module):
    """A positional embedding with four dimensions, channels first or last."""

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv = nn.Conv2d(3, channels, 1)
        shape = (1, channels, 4, 4) if first else (1, 4, 4, channels)
        self.positions = nn.Parameter(torch.zeros(shape))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) if self.first else self.conv(x).permute(0, 2, 3, 1)
        x = x + self.positions
        return self.head(x.mean((2, 3) if self.first else (1, 2)))


@pytest.mark.parametrize(
    ("channels", "first", "fits"), [(8, True, True), (8, False, False), (4, True, False)]
)
def test_positional_embeddings_with_four_dimensions(channels: int, first: bool, fits: bool) -> None:
    """Channels first is a primitive; channels last would be taken for a very wide kernel."""
    model = Positions(channels, first)
    graph = ghn_init.trace(model, torch.zeros(2, 3, 4, 4))
    assert ("pos_enc" in ops(graph)) == fits
    assert ("positions" in graph.left) != fits
    if fits:
        assert ghn_init.predict(model, seeded(), graph)["positions"].shape == (1, 8, 4, 4)


class Stated(nn.Module):
    """A transformer of patches by `reshape`, that runs on the size it states and on no other."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        self.patch = nn.Linear(channels * 64, 16)
        self.pos = nn.Parameter(torch.zeros(1, size[0] * size[1] // 64, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        assert (c, h, w) == (self.channels, *self.size)
        x = x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 64 * c)
        return self.head((self.patch(x) + self.pos).mean(1))


def in_config(**stated: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(**stated)


@pytest.mark.parametrize(
    ("channels", "size", "attribute", "stated"),
    [
        (3, (72, 72), "image_size", 72),
        (3, (40, 72), "img_size", (40, 72)),
        (3, (72, 40), "patch_embed", in_config(img_size=[72, 40])),
        (5, (72, 72), "config", in_config(image_size=72, num_channels=5)),
        (1, (48, 72), "config", in_config(image_size={"height": 48, "width": 72}, num_channels=1)),
        (3, (48, 72), "config", in_config(image_size=in_config(height=48, width=72))),
        (3, (56, 72), "pretrained_cfg", {"input_size": (3, 56, 72)}),
        (3, (448, 448), "unstated", None),
    ],
)
def test_sizes_and_channels_that_a_model_states(
    channels: int, size: tuple[int, int], attribute: str, stated: object
) -> None:
    model = Stated(channels, size)
    setattr(model, attribute, stated)
    assert ghn_init.trace(model).left == {}


def test_what_a_part_states_is_tried() -> None:
    inner = Stated(3, (72, 48))
    inner.img_size = (72, 48)
    assert ghn_init.trace(nn.Sequential(nn.Identity(), inner)).left == {}


def test_video_models_state_their_frames() -> None:
    class Video(ConvNet):
        config = in_config(image_size=16, num_frames=3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (3, 3, 16, 16)
            return super().forward(x.flatten(0, 1))

    assert ghn_init.trace(Video()).left == {}


def test_images_and_words_by_their_names() -> None:
    class TwoTowers(ConvNet):
        config = in_config(text_config=in_config(), image_size=16)

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 10)

        def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values) + self.words(input_ids).mean(1)

    assert set(ghn_init.trace(TwoTowers()).left) == {"words.weight"}


def test_three_channels_where_another_layer_is_declared_first() -> None:
    class Unshuffled(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(48, 8, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pixel_unshuffle(x, 4))

    assert ghn_init.trace(Unshuffled()).left == {}


def test_timm_models_take_example_inputs() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "test_vit", pretrained_cfg="ghn3:embedded", dynamic_img_size=True,
        example_inputs=torch.zeros(2, 3, 48, 80),
    )  # fmt: skip
    assert model(torch.zeros(1, 3, 48, 80)).isfinite().all()
    with pytest.raises(GHNInitError, match=r"does not run on the example input \(float32\[7\]\)"):
        timm.create_model("test_vit", pretrained_cfg="ghn3:embedded", example_inputs=torch.zeros(7))


@torch.library.custom_op("ghn_init_tests::halved", mutates_args=(), schema="(Tensor x) -> Tensor")
def halved(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() / 2)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(x.detach()) / 2)


def by_a_list(x: Tensor) -> Tensor:
    return x / max(1.0, *x.flatten().tolist())


def by_a_loop(x: Tensor) -> Tensor:
    while bool(x.abs().max() > 1):
        x = x / 2
    return x


def by_a_sparse_buffer(x: Tensor) -> Tensor:
    mixing = torch.eye(16).to_sparse_csr()
    assert mixing.values().sum() == 16
    return (mixing @ x.flatten(1)[:, :16].T).T.repeat(1, 16).reshape(-1, 8, 4, 8)


NUMBERS = [
    halved, Halved.apply, by_a_list, by_a_loop, by_a_sparse_buffer,
    lambda x: x * torch.from_numpy(np.sign(x.numpy())),
]  # fmt: skip


@pytest.mark.parametrize("guessed", [False, True])
@pytest.mark.parametrize("function", NUMBERS)
def test_forwards_that_need_numbers_in_any_way(function: object, guessed: bool) -> None:
    class Asking(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(F.adaptive_avg_pool2d(x, (4, 8))))
            return self.head(function(x).mean((2, 3)))

    model = Asking()
    del model.depthwise, model.squeeze, model.excite
    graph = ghn_init.trace(model, None if guessed else torch.rand(2, 3, 4, 8))
    assert graph.left == {}
    assert [(i, i + 1) for i in range(len(graph) - 1)] == graph.edges  # and nothing is cut
    assert any("random numbers" in note for note in graph.notes)


def coins() -> dict[str, object]:
    ours, theirs, numpy = random.Random(5), torch.Generator(), np.random.default_rng(1)
    return {
        "python": lambda: random.random() < 0.5,
        "own": lambda: ours.random() < 0.5,
        "torch": lambda: bool(torch.rand([]) < 0.5),
        "own_torch": lambda: bool(torch.rand([], generator=theirs) < 0.5),
        "numpy": lambda: numpy.uniform() < 0.5,
        "system": lambda: os.urandom(1)[0] < 128,
    }


class Dropping(nn.Module):
    def __init__(self, skips: object, auxiliary: bool) -> None:
        super().__init__()
        self.skips, self.auxiliary = skips, auxiliary
        self.stem, self.head, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), nn.Linear(8, 10)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12))
        self.encoder.forward = self.encode

    def encode(self, x: Tensor) -> Tensor:
        for block in self.encoder.blocks:
            if not (self.encoder.training and self.skips()):
                x = x + block(x).relu()
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.stem(x)
        x = self.head(self.encoder(first).mean((2, 3)))
        if self.training or not self.auxiliary:
            return x, self.aux(first.mean((2, 3)))
        return (x,)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("coin", coins())
def test_layers_that_are_skipped_at_random(coin: str, auxiliary: bool) -> None:
    """All are predicted, and a head that only training mode has is, too."""
    model = Dropping(coins()[coin], auxiliary).eval()
    graph = ghn_init.trace(model, torch.rand(2, 3, 8, 8))
    assert graph.left == {}
    assert any("skips layers" in note for note in graph.notes)
    assert [node.op for node in graph.nodes].count("sum") == 12


@dataclasses.dataclass(slots=True)
class Slots:
    logits: Tensor


class Lazy:
    def __init__(self, tensor: Tensor) -> None:
        self.make = tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield self.make


OUTPUTS = {
    "slots": Slots,
    "generator": lambda y: (t.relu() for t in [y]),
    "map": lambda y: map(torch.relu, [y]),
    "values": lambda y: {"a": y}.values(),
    "items": lambda y: {"a": [y]}.items(),
    "deque": lambda y: collections.deque([y]),
    "frozenset": lambda y: frozenset([y]),
    "namespace": lambda y: types.SimpleNamespace(a={"b": (y,)}),
    "iterable": Lazy,
    "named": collections.namedtuple("Named", "logits"),
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_in_any_container(wrap: object) -> None:
    class Wrapped(ConvNet):
        def forward(self, x: Tensor) -> object:
            return wrap(super().forward(x))

    assert ghn_init.trace(Wrapped()).left == {}


def test_outputs_that_are_kept_or_missing() -> None:
    class Kept(ConvNet):
        def forward(self, x: Tensor) -> None:
            self.outputs = {"logits": [super().forward(x)]}

    class Nothing(ConvNet):
        def forward(self, x: Tensor) -> str:
            return f"shape {super().forward(x).shape}"

    class Constant(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    assert ghn_init.trace(Kept()).left == {}
    with pytest.raises(GHNInitError, match="no output to trace: its forward returns str"):
        ghn_init.trace(Nothing())
    with pytest.raises(GHNInitError, match="no output of Constant depends on a parameter"):
        ghn_init.trace(Constant())


def test_parameters_in_a_list_or_a_closure_are_found() -> None:
    class Listed(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.weights = {"stem": (self.stem.weight,)}
            self.end = lambda x: F.linear(x, self.head.weight, self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(F.conv2d(x, self.weights["stem"][0]).mean((2, 3)))

    graph = ghn_init.trace(Listed())
    used = {node.param for node in graph.nodes}
    assert {"stem.weight", "head.weight", "head.bias"} <= used
