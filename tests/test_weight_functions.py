"""What a layer may make of a parameter before it multiplies with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_apply import orthogonality_error, seeded, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import ghn_init


class Made(nn.Module):
    """A linear layer whose weight is a function of its parameter, between two ordinary ones."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int = 12) -> None:
        super().__init__()
        self.first, self.layer, self.head = (nn.Linear(size, n) for n in (size, size, 10))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(F.linear(x, self.function(self.layer.weight), self.layer.bias)))


def ste(weight: Tensor) -> Tensor:
    return (weight.sign() - weight).detach() + weight


X = torch.zeros(2, 12)

THE_WEIGHT = {
    "causal": lambda w: w.tril(),
    "masked": lambda w: w * torch.ones(12, 12, device=w.device).tril(),
    "pruned by size": lambda w: w * (w.abs() > 0.1),
    "dropped": lambda w: F.dropout(w, 0.3, training=True),
    "centered": lambda w: w - w.mean(1, keepdim=True),
    "standardized": lambda w: 2 * (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5),
    "rows of length 1": lambda w: F.normalize(w),
    "divided by its largest value": lambda w: w / w.abs().max(),
    "quantized": lambda w: torch.fake_quantize_per_tensor_affine(w, 0.05, 0, -128, 127),
    "another precision": lambda w: w.double().float(),
}
NOT_THE_WEIGHT = {
    "exp": lambda w: w.exp(),
    "softplus": lambda w: F.softplus(w),
    "abs": lambda w: w.abs(),
    "pow": lambda w: w**2,
    "mul": lambda w: w * w,
    "sign": ste,
    "tanh": lambda w: w.tanh() / w.abs().max(),
    "add": lambda w: w + 1,
    "round": lambda w: (w / 0.1).round() * 0.1,
    "mm": lambda w: w @ w.t(),
    "_softmax": lambda w: w.softmax(1),
}


@pytest.mark.parametrize("name", THE_WEIGHT)
def test_through_these_a_parameter_is_the_weight(name: str) -> None:
    model = Made(THE_WEIGHT[name])
    expected = ghn_init.trace(Made(lambda w: w), X)
    assert ghn_init.trace(model, X).nodes == expected.nodes
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=X, return_report=True)
    assert report.coverage == 1
    assert orthogonality_error(model.layer.weight) < 1e-4 or report.orth_start > 2


@pytest.mark.parametrize("name", NOT_THE_WEIGHT)
def test_what_another_function_makes_a_weight_of_is_left(name: str) -> None:
    model = Made(NOT_THE_WEIGHT[name])
    before = model.layer.weight.clone()
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=X, return_report=True)
    assert list(report.left) == ["layer.weight"]
    assert f"({name})" in report.left["layer.weight"]
    assert torch.equal(model.layer.weight, before)


def test_orthogonal_parametrization_is_left_and_stays_orthogonal() -> None:
    layer = parametrizations.orthogonal(nn.Linear(12, 12))
    model = nn.Sequential(nn.Linear(12, 12), layer, nn.Linear(12, 10))
    before = layer.weight.clone()
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=X, return_report=True)
    assert list(report.left) == ["1.parametrizations.weight.original"]
    assert torch.equal(layer.weight, before)


def test_pruning_masks_stay() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    prune.random_unstructured(model[0], "weight", 0.5)
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=X, return_report=True)
    model(X)
    assert report.coverage == 1
    assert torch.equal(model[0].weight == 0, model[0].weight_mask == 0)


class Two(nn.Module):
    """A weight made of two parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(12, 12)), nn.Parameter(b)
        self.head, self.function = nn.Linear(12, 10), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.function(self.a, self.b)).relu())


@pytest.mark.parametrize(
    ("function", "b", "left"),
    [
        (lambda a, b: a * b, torch.ones(12, 1), {"b": "part of what a"}),
        (lambda a, b: a * (b > 0), torch.randn(12, 12), {"b": "(a mask or a norm)"}),
        (lambda a, b: a + F.softplus(b) * torch.randn_like(a), torch.randn(12, 12),
         {"b": "softplus"}),
        (lambda a, b: a * b, torch.randn(12, 12), {"a": "several", "b": "several"}),
        (lambda a, b: a[:, :1] @ b[:1], torch.randn(12, 12), {"a": "mm", "b": "mm"}),
    ],
    ids=["gain", "learned mask", "variational", "ambiguous", "low rank"],
)  # fmt: skip
def test_weights_of_two_parameters(function, b: Tensor, left: dict[str, str]) -> None:
    found = ghn_init.trace(Two(function, b), X).left
    assert found.keys() == left.keys()
    assert all(text in found[name] for name, text in left.items()), found


def test_a_hypernetwork_is_left() -> None:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.make = nn.Parameter(torch.randn(4)), nn.Linear(4, 144)
            self.head = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.linear(x, self.make(self.code).view(12, 12)).relu())

    graph = ghn_init.trace(Hyper(), X)
    assert set(graph.left) == {"code", "make.weight", "make.bias"}


SCALES = {
    "number": lambda w: w * 0.125,
    "divided": lambda w: w / 8,
    "negative": lambda w: -w,
    "tensor": lambda w: w * torch.tensor(0.125),
    "twice": lambda w: 0.5 * (w * 0.25),
}


@pytest.mark.parametrize("name", SCALES)
def test_constant_factors_are_divided_out(name: str) -> None:
    """The weight that is used is the same, whatever factor it is stored with."""
    models = Made(lambda w: w), Made(SCALES[name])
    for model in models:
        ghn_init.apply(model, ghn=seeded(), orth_start=1, example_inputs=X)
    plain, scaled = (model.function(model.layer.weight) for model in models)
    torch.testing.assert_close(scaled, plain)
    tensors = ghn_init.predict(models[1], seeded(), example_inputs=X)
    used = ghn_init.predict(models[0], seeded(), example_inputs=X)["layer.weight"]
    torch.testing.assert_close(models[1].function(tensors["layer.weight"]), used)


class Equalized(nn.Module):
    """Layers whose inputs are multiplied by a constant; their weights are drawn for it, or not."""

    def __init__(self, scale: Callable[[Tensor], Tensor], std: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head, self.scale = nn.Linear(64, 10), scale
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(self.scale(x)))
        return self.head(x)


INPUT_SCALES = {
    "number": lambda x: x * 0.125,
    "divided": lambda x: (x / 8).clone(),
    "twice": lambda x: (x * 0.25).view(-1, 64) * 0.5,
    "tensor": lambda x: x * torch.tensor(0.125),
}


@pytest.mark.parametrize("name", INPUT_SCALES)
def test_constants_on_inputs_that_weights_are_drawn_for_are_divided_out(name: str) -> None:
    x = torch.randn(4, 64)
    outputs = []
    for scale, std in ((lambda x: x, 0.125), (INPUT_SCALES[name], 1.0)):
        model = Equalized(scale, std)
        predicted = ghn_init.predict(model, seeded(), example_inputs=x)["layers.1.weight"]
        ghn_init.apply(model, ghn=seeded(), orth_start=1, example_inputs=x, head="predict")
        outputs.append((model(x), predicted))
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    torch.testing.assert_close(outputs[0][1] * 8, outputs[1][1])


def test_other_constants_on_inputs_mean_what_they_say() -> None:
    """Images of 0 to 255, a branch that is small: the weights are of a usual size as they are."""
    models = Equalized(lambda x: x, 0.125), Equalized(lambda x: x / 255, 0.125)
    for model in models:
        ghn_init.apply(model, ghn=seeded(), example_inputs=torch.zeros(2, 64))
    assert torch.equal(models[0].layers[0].weight, models[1].layers[0].weight)


def test_a_factor_that_is_a_buffer_is_divided_out_and_an_unknown_one_left() -> None:
    class Scaled(nn.Module):
        def __init__(self, known: bool) -> None:
            super().__init__()
            self.layer, self.head, self.known = nn.Linear(12, 12), nn.Linear(12, 10), known
            self.register_buffer("scale", torch.tensor(0.25))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale if self.known else self.scale.sqrt()
            return self.head(F.linear(x, self.layer.weight * scale, self.layer.bias).relu())

    assert ghn_init.trace(Scaled(True), X).factors == {"layer.weight": 0.25}
    assert "does not know" in ghn_init.trace(Scaled(False), X).left["layer.weight"]


def test_normalized_weights_are_not_rescaled() -> None:
    graph = ghn_init.trace(Made(lambda w: 0.1 * F.normalize(w)), X)
    assert graph.factors == {}
    assert graph.normalized == {"layer.weight"}


def test_norms_that_add_one_to_their_weight_are_left() -> None:
    class ZeroCentered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
            self.gain = nn.Parameter(torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.rms_norm(self.a(x), (12,), 1 + self.gain))

    assert "(add)" in ghn_init.trace(ZeroCentered(), X).left["gain"]


@pytest.mark.parametrize("dtype", [torch.cfloat, torch.int8])
def test_dtypes_that_no_prediction_fits_are_left(dtype: torch.dtype) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
            real = torch.arange(144).view(12, 12) - 70
            self.odd = nn.Parameter(real.to(dtype), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.odd if dtype.is_complex else self.odd.float()
            return self.head(F.linear(self.a(x).to(weight.dtype), weight).real)

    model = Odd()
    before = model.odd.clone()
    _, report = ghn_init.apply(
        model, ghn=seeded(), include_frozen=True, example_inputs=X, return_report=True
    )
    assert list(report.left) == ["odd"]
    assert str(dtype).removeprefix("torch.") in report.left["odd"]
    assert torch.equal(model.odd, before)


def test_a_tied_decoder_has_true_reasons() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.bias = nn.Linear(12, 6), nn.Parameter(torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)

    graph = ghn_init.trace(Tied(), X)
    assert graph.left == {"bias": "bias of a layer that no primitive fits"}


class Hooked(nn.Module):
    """A spectral norm behind another parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 3


@pytest.mark.parametrize("kind", ["hook", "parametrization", "two parametrizations", "transposed"])
def test_spectral_norms_follow_the_new_weight(kind: str) -> None:
    layer = nn.Linear(12, 12)
    if kind == "two parametrizations":
        parametrize.register_parametrization(layer, "weight", Hooked())
    dim = 1 if kind == "transposed" else 0
    normed = nn.utils.spectral_norm if kind == "hook" else parametrizations.spectral_norm
    model = nn.Sequential(normed(layer, dim=dim), nn.ReLU(), nn.Linear(12, 10)).eval()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    _, report = ghn_init.apply(model, "ghn3", ghn=seeded(), example_inputs=X, return_report=True)
    model(X)
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1, abs=1e-3)
    assert set(report.buffers) == set(buffers)
    assert all(name in str(report) for name in report.buffers)
    assert not any(torch.equal(buffers[n], b) for n, b in model.named_buffers())


def test_spectral_norms_of_a_weight_that_is_left_stay() -> None:
    model = nn.Sequential(nn.Linear(12, 12), parametrizations.spectral_norm(nn.Linear(12, 5)))
    before = state(model)
    _, report = ghn_init.apply(model, ghn=seeded(), example_inputs=X, return_report=True)
    assert report.buffers == ()
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
