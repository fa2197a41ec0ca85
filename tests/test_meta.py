"""Models built on the meta device: after `apply` they are what building them for real makes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from models import ConvNet
from test_apply import equal, seeded, state
from torch import Tensor, nn
from zoo_models import ZOO, tensors

import ghn_init
from ghn_init import GHNInitError
from ghn_init.weights.places import held_tensors


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model that has no numbers. Older libraries cannot build theirs so: they read drop rates."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError) as error:
        if "meta tensor" in str(error):
            pytest.skip(f"the library cannot build it on meta: {error}")
        raise


def left_on_meta(model: nn.Module) -> list[object]:
    modules = model.named_modules()
    return [(name, *k) for name, m in modules for k, t in held_tensors(vars(m)) if t.is_meta]


def check_twin(model: nn.Module, build: Callable[[], nn.Module], *inputs: Tensor) -> nn.Module:
    """Nothing is left on meta, and a twin built for real that loads the state does the same."""
    assert not left_on_meta(model)
    twin = build()
    twin.load_state_dict(model.state_dict())
    for training in (True, False):
        outputs = []
        for module in (model, twin):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                out = module.train(training)(*inputs)
            outputs.append(out if isinstance(out, Tensor) else out[0])
        assert outputs[0].isfinite().all()
        assert torch.equal(*outputs)
    return twin


def dirty_memory() -> None:
    """What is not initialized is then unlikely to be 0."""
    junk = [torch.full((size,), 7e9) for size in (1, 8, 64, 216, 1000) for _ in range(50)]
    del junk


# -- what models hold


class Masked(nn.Conv2d):
    """A buffer that `reset_parameters` does not fill."""

    def __init__(self, *args: int, where: str = "cpu", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight, device=where).tril())

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask.to(self.weight.device)
        return self._conv_forward(x, self.weight * mask, self.bias)


class Table(nn.Module):
    """Plain tensors and containers of them, beside a buffer that is not in the state dict."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("steps", torch.arange(length).flip(0), persistent=False)
        self.scale = torch.linspace(1, 2, length)
        self.tables = {"a": [torch.full((length,), 0.5)]}

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.steps] * self.scale + self.tables["a"][0]


class Positions(nn.Module):
    """It does not keep the arguments that its buffer depends on."""

    def __init__(self, channels: int, period: float = 100.0) -> None:
        super().__init__()
        self.register_buffer("table", period ** -torch.linspace(0, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def net(*middle: nn.Module, classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_what_is_not_predicted_gets_its_own_initialization() -> None:
    ghn = seeded()
    before = torch.get_rng_state(), random.getstate()
    a = ghn_init.apply(on_meta(lambda: ConvNet(classes=7)), ghn=ghn)
    with torch.device("meta"):  # as somebody might leave it on, by torch.set_default_device
        b = ghn_init.apply(ConvNet(classes=7), ghn=ghn)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert equal(state(a), state(b))  # the head's own initialization is seeded, too
    other = ghn_init.apply(on_meta(lambda: ConvNet(classes=7)), ghn=ghn, seed=1)
    assert not torch.equal(a.head.weight, other.head.weight)
    real = ghn_init.apply(ConvNet(classes=7), ghn=ghn)
    for name, param in real.named_parameters():
        if not name.startswith("head"):
            assert torch.equal(param, a.get_parameter(name))
    check_twin(a, lambda: ConvNet(classes=7), IMAGES)


def test_tied_parameters_stay_one_and_the_same_object() -> None:
    def build() -> nn.Module:
        model = net(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        model[2].weight = model[1].weight
        model.kept = [model[1].bias]  # a list that a module holds by itself
        return model

    model = on_meta(build)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight.note = "an attribute"
    names, objects = zip(*model.named_parameters(), strict=True)
    ghn_init.apply(model, ghn=seeded())
    assert [n for n, _ in model.named_parameters()] == list(names)
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], objects, strict=True))
    assert model[2].weight is model[1].weight
    assert model.kept[0] is model[1].bias
    assert model[0].weight.note == "an attribute"
    model(IMAGES).sum().backward()
    before = model[1].weight.clone()
    optimizer.step()
    assert not torch.equal(model[2].weight, before)


def test_views_of_one_storage_stay_views() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
            table = torch.ones(4, 8)
            self.register_buffer("row", table[1])
            self.register_buffer("table", table)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)) * self.row)

    model = ghn_init.apply(on_meta(Net), ghn=seeded())
    model.table[1] = 5
    assert model.row.eq(5).all()
    assert model.table[0].eq(1).all()


@pytest.mark.parametrize("where", ["meta", "cpu"])
def test_buffers(where: str) -> None:
    """On meta like the model; and beside it on a real device, where they stay as they are."""

    def build() -> nn.Module:
        return net(Masked(8, 8, 3, where=where))

    def on_cpu() -> nn.Module:
        return net(Masked(8, 8, 3))

    model = on_meta(build)
    if where == "cpu":
        model[1].mask.mul_(3)
    dirty_memory()
    ghn_init.apply(model, ghn=seeded())
    expected = torch.ones(8, 8, 3, 3).tril() * (3 if where == "cpu" else 1)
    assert torch.equal(model[1].mask, expected)
    check_twin(model, on_cpu, IMAGES)


def test_plain_tensors_and_containers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.table, self.head = nn.Conv2d(3, 8, 3), Table(8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(self.stem(x).mean((2, 3))))

    dirty_memory()
    check_twin(ghn_init.apply(on_meta(Net), ghn=seeded()), Net, IMAGES)


def test_what_cannot_be_had_is_an_error_before_anything_is_touched() -> None:
    class HalfFilled(nn.Linear):
        """Its function fills a part of what it holds; the argument is not kept."""

        def __init__(self, inputs: int, outputs: int, value: float = 0.5) -> None:
            super().__init__(inputs, outputs)
            self.scale = nn.Parameter(torch.full((outputs,), value))

        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "scale"):
                with torch.no_grad():
                    self.scale[1:] = 0.5

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    for layer, name in ((Positions, "table"), (lambda c: HalfFilled(c, c), "scale")):
        model = on_meta(
            lambda layer=layer: nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                layer(8),
                nn.Linear(8, 10),
            )
        )
        before = {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
        with pytest.raises(GHNInitError, match=rf"3\.{name} is on the meta device"):
            ghn_init.apply(model, ghn=seeded())
        after = {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
        assert before == after
        assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_defaults_that_may_not_be_what_they_were_are_not_guessed() -> None:
    class Scaled(nn.Module):
        def __init__(self, start: float = 1.0) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
            self.scale = nn.Parameter(torch.full((8,), start))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)) * self.scale)

    with pytest.raises(GHNInitError, match="scale is on the meta device"):
        ghn_init.apply(on_meta(lambda: Scaled(0.5)), ghn=seeded())

    class Kept(Scaled):
        def __init__(self, start: float = 1.0) -> None:
            super().__init__(start)
            self.start = start

    model = ghn_init.apply(on_meta(lambda: Kept(0.5)), ghn=seeded())
    assert model.scale.eq(0.5).all()


def test_what_a_models_own_function_sets_is_kept() -> None:
    """`init_weights()` and `self.apply(self._init_weights)`: the two usual ways."""

    class ByName(nn.Module):
        def __init__(self, unknown: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 7)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.init_weights()

        def init_weights(self) -> None:
            nn.init.constant_(self.token, 0.25)
            nn.init.constant_(self.head.weight, 0.125)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(torch.cat([self.token.expand(len(x), -1, -1), x], 1).mean(1))

    class ByLayer(ByName):
        init_weights = None  # type: ignore[assignment]

        def __init__(self, unknown: int) -> None:
            nn.Module.__init__(self)
            self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 7)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.apply(self._init_weights)

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.weight, 0.125)
            if isinstance(module, ByName):
                nn.init.constant_(module.token, 0.25)

    for cls in (ByName, ByLayer):
        model = on_meta(lambda cls=cls: cls(3))
        _, report = ghn_init.apply(
            model, ghn=seeded(), example_inputs=torch.zeros(2, 5, 12), return_report=True
        )
        assert {"token", "head.weight", "head.bias"} == report.left.keys()
        assert model.token.eq(0.25).all()
        assert model.head.weight.eq(0.125).all()


def test_layers_that_were_initialized_one_by_one_are_in_the_report() -> None:
    class Unknown(ConvNet):
        def __init__(self, classes: int, start: float) -> None:
            super().__init__(classes)
            nn.init.constant_(self.head.bias, start)

    model = on_meta(lambda: Unknown(7, 0.5))
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    left, predicted = report.notes
    assert left.startswith("norm.running_mean, norm.running_var, norm.num_batches_tracked, head.")
    assert "what the __init__ of Unknown does" in left
    assert predicted.startswith("stem.weight, ")
    assert "if the __init__ of Unknown gives them values on purpose" in predicted


# -- what looks at the model's own values


class Controlled(ConvNet):
    """A zero convolution beside the trunk, and a stream without norms."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.depth = depth
        self.zero = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.zero.weight)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x.relu())
        return super().forward(x + self.zero(x))


def test_rules_about_a_models_own_values_hold_on_meta() -> None:
    reports = [
        ghn_init.apply(model, ghn=seeded(), return_report=True)[1]
        for model in (Controlled(), on_meta(Controlled))
    ]
    assert reports[0].left.keys() == {"zero.weight", "zero.bias"}
    assert reports[0].left == reports[1].left
    assert "scaled down" in str(reports[0].notes)
    assert reports[0].notes == reports[1].notes


def test_a_sequence_does_nothing_to_its_layers() -> None:
    """So that what they are built again from is all that there is to know."""
    model = on_meta(lambda: nn.Sequential(Controlled(), nn.ReLU(), nn.Linear(10, 10)))
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert {"0.zero.weight", "0.zero.bias"} <= report.left.keys()
    assert "on the meta device" not in str(report)


def test_rules_that_need_values_that_cannot_be_had_are_in_the_report() -> None:
    class Unknown(Controlled):
        def __init__(self, unknown: int) -> None:
            super().__init__()

    model = on_meta(lambda: Unknown(3))
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert "zero.weight" in report.written
    assert any("On a real device such values are left" in note for note in report.notes)
    assert any("its own values are not known" in note for note in report.notes)


def test_rand_gives_a_meta_model_its_own_initialization() -> None:
    class Halves(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            nn.init.constant_(self.head.weight, 0.5)

    model = ghn_init.apply(on_meta(Halves), "rand")
    assert model.head.weight.eq(0.5).all()
    check_twin(model, Halves, IMAGES)
    assert 0.1 < model.stem.weight.std() < 0.2


def test_precision_and_layout_of_a_meta_model_stay() -> None:
    model = on_meta(lambda: ConvNet(7)).to(torch.bfloat16, memory_format=torch.channels_last)
    ghn_init.apply(model, ghn=seeded())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert model(IMAGES.bfloat16()).isfinite().all()


def test_a_model_that_autograd_holds_is_left_as_it_was() -> None:
    model = on_meta(ConvNet)
    output = model(torch.zeros(2, 3, 8, 8, device="meta"))  # its graph refers to the parameters
    with pytest.raises(GHNInitError, match="cannot be taken off the meta device"):
        ghn_init.apply(model, ghn=seeded())
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    del output


def test_recurrent_layers() -> None:
    """They keep lists of, and weak references to, their parameters."""

    class Sequencer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Linear(12, 16), nn.LSTM(16, 16, 2, batch_first=True)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.embed(x))[0].mean(1))

    model, inputs = on_meta(Sequencer), torch.rand(2, 5, 12)
    ghn_init.apply(model, ghn=seeded(), example_inputs=inputs)
    check_twin(model, Sequencer, inputs)
    assert model.lstm._flat_weights[0] is model.lstm.weight_ih_l0
    before = model(inputs)
    with torch.no_grad():
        model.lstm.weight_ih_l0.mul_(2)
    assert not torch.equal(before, model(inputs))


# -- libraries


SWIN = "swin_tiny_patch4_window7_224"
SMALL = {"img_size": 32, "num_classes": 7}
TIMM = {
    "vit_tiny_patch16_224": {**SMALL, "patch_size": 8, "depth": 1, "init_values": 1e-5},
    "convnext_atto": {"num_classes": 7, "depths": (1, 1, 1, 1), "ls_init_value": 0.25},
    "swin_tiny_patch4_window7_224": {
        **SMALL,
        "window_size": 2,
        "depths": (2, 2),
        "num_heads": (1, 2),
    },
    "beit_base_patch16_224": {**SMALL, "depth": 2, "embed_dim": 48, "num_heads": 4},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    """What is left has the values of a model that is built for real, or is drawn alike."""

    def build() -> nn.Module:
        return timm.create_model(name, **TIMM[name])

    dirty_memory()
    _, report = ghn_init.apply(model := on_meta(build), ghn=seeded(), return_report=True)
    images = torch.rand(2, 3, 32, 32)
    twin = check_twin(model, build, images)
    assert any(name.startswith("head") for name in report.left)
    fresh = build().state_dict()
    assert not [note for note in report.notes if "layer by layer" in note]
    for name in report.left:
        found, wanted = twin.state_dict()[name], fresh[name]
        if wanted.numel() > 100 and wanted.std() > 0:
            assert found.std().item() == pytest.approx(wanted.std().item(), rel=0.3)
        elif not wanted.is_floating_point() or wanted.unique().numel() == 1:
            assert torch.equal(found, wanted), name


def test_timm_model_with_another_head_or_built_by_its_class() -> None:
    def swapped() -> nn.Module:
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", **TIMM["swin_tiny_patch4_window7_224"]
        )
        model.head.fc = nn.Linear(model.num_features, 5)
        return model

    def by_class() -> nn.Module:
        return timm.models.swin_transformer.SwinTransformer(
            img_size=32, embed_dim=24, window_size=2, depths=(2, 2), num_heads=(1, 2), num_classes=7
        )

    for build in (swapped, by_class):
        dirty_memory()
        model = ghn_init.apply(
            on_meta(build), ghn=seeded(), example_inputs=torch.zeros(2, 3, 32, 32)
        )
        check_twin(model, build, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "mobilenet_v3_small"])
def test_torchvision(name: str) -> None:
    """The builder that makes the same model is found (layer scales, tables and index buffers)."""

    def build() -> nn.Module:
        return torchvision.models.get_model(name, weights=None, num_classes=7)

    dirty_memory()
    model, report = ghn_init.apply(on_meta(build), ghn=seeded(), return_report=True)
    assert not report.notes
    check_twin(model, build, torch.rand(2, 3, 64, 64))
    if name == "convnext_tiny":
        assert model.features[1][0].layer_scale.eq(torch.tensor(1e-6)).all()


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes = {**common, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.25}
    swin = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
    }
    for model_class, config in (
        (transformers.ViTModel, transformers.ViTConfig(**sizes)),
        (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**sizes)),
        (transformers.SwinModel, transformers.SwinConfig(**swin, window_size=4)),
    ):
        dirty_memory()
        inputs = {"pixel_values": torch.rand(2, 3, 32, 32)}
        model, report = ghn_init.apply(
            on_meta(lambda: model_class(config)), ghn=seeded(), example_inputs=inputs,  # noqa: B023
            return_report=True,
        )  # fmt: skip
        check_twin(model, lambda: model_class(config), inputs["pixel_values"])  # noqa: B023
        if model_class is transformers.ViTModel:
            assert model.embeddings.cls_token.std().item() == pytest.approx(0.25, rel=0.5)
        assert not [note for note in report.notes if "layer by layer" in note]


def test_no_memory_is_shared_with_another_model() -> None:
    shared = nn.Linear(8, 8)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = nn.Conv2d(3, 8, 3), shared, nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.shared(self.stem(x).mean((2, 3)))))

    model = ghn_init.apply(on_meta(Net), ghn=seeded())
    assert model.shared is shared
    assert not left_on_meta(model)


def spread_alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are equal, or drawn from distributions of one spread."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if torch.equal(found, wanted) or (found.is_floating_point() and found.numel() < 200):
        return True
    return found.is_floating_point() and found.std().item() == pytest.approx(
        wanted.std().item(), rel=0.25
    )


KEEP_NO_ARGUMENTS = {
    name
    for kind in (torchvision.models.segmentation, torchvision.models.detection)
    for name in torchvision.models.list_models(module=kind)
    if not name.startswith("lraspp")
}
"""Models that are put together from parts, and do not keep what they were built with."""


def check_doubt(model: nn.Module) -> None:
    """What its `__init__` does to its layers is unknown, and said."""
    if hasattr(getattr(model, "backbone", None), "scale_weight"):  # of SSD, and no layer's
        with pytest.raises(GHNInitError, match="scale_weight is on the meta device"):
            ghn_init.apply(model, "rand")
        return
    _, report = ghn_init.apply(model, "rand", return_report=True)
    assert not left_on_meta(model)
    assert any("initialized layer by layer" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_zoo_on_meta(name: str) -> None:
    """Every model that can be built on meta is what building it for real makes."""
    if name.startswith(("timm", "transformers")):
        pytest.importorskip(name.partition("/")[0])
    entry = ZOO[name]
    torch.manual_seed(0)
    try:
        model = on_meta(entry.build)
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"cannot be built on meta: {error}")
    dirty_memory()
    if name.partition("/")[2] in KEEP_NO_ARGUMENTS:
        check_doubt(model)
        return
    _, report = ghn_init.apply(model, "rand", return_report=True)
    assert not left_on_meta(model)
    assert not report.notes
    twin = entry.build()
    fresh = twin.state_dict()
    for key, tensor in model.state_dict().items():
        assert spread_alike(tensor, fresh[key]), key
    twin.load_state_dict(model.state_dict())
    outputs = [[t.nan_to_num(0.5) for t in tensors(entry.outputs(m.eval()))] for m in (model, twin)]
    assert all(map(torch.equal, *outputs))
