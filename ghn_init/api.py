"""The main job: model -> trace -> graph -> GHN -> post-process -> assign -> report."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import NORMS, Graph
from ghn_init.graph.isolation import plain_modes
from ghn_init.graph.tracing import check_traceable, trace
from ghn_init.hypernetwork.encoding import class_tokens
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.methods.advice import advice
from ghn_init.report import Report
from ghn_init.weights.assignment import assign, check_writable
from ghn_init.weights.postprocess import (
    PostProcessing,
    classifier_weights,
    post_process,
    weight_layers,
)

METHODS = ("ghn3-orth", "ghn3", "ghn2-orth", "ghn2", "orth", "rand")
HEADS = ("auto", "predict", "keep")
NORM_LAYERS = ("auto", "predict", "keep")

_NOISE = 1e-5
_NOISE_ORTH = 3e-5


@dataclass(frozen=True)
class _Settings:
    """The arguments of `apply`, checked."""

    method: str
    arch: str | None  # the hypernetwork's architecture; None for the baselines
    head: str
    norms: str
    seed: int
    noise: float
    orth_start: int | float | None  # None: as is best for the checkpoint

    def steps(self, ghn: GHN | None) -> PostProcessing:
        """The post-processing."""
        start = advice(ghn).orth_start if self.orth_start is None else self.orth_start
        return PostProcessing(self.noise, self.method.endswith("orth"), start)


@overload
def apply(
    model: nn.Module,
    method: str = ...,
    *,
    ghn: str | os.PathLike[str] | GHN | None = ...,
    device: str | torch.device | None = ...,
    head: str = ...,
    norms: str = ...,
    noise: float | None = ...,
    orth_start: float | None = ...,
    seed: int = ...,
    example_inputs: Any = ...,
    include_frozen: bool = ...,
    return_report: Literal[False] = ...,
) -> nn.Module: ...


@overload
def apply(
    model: nn.Module,
    method: str = ...,
    *,
    ghn: str | os.PathLike[str] | GHN | None = ...,
    device: str | torch.device | None = ...,
    head: str = ...,
    norms: str = ...,
    noise: float | None = ...,
    orth_start: float | None = ...,
    seed: int = ...,
    example_inputs: Any = ...,
    include_frozen: bool = ...,
    return_report: Literal[True],
) -> tuple[nn.Module, Report]: ...


def apply(
    model: nn.Module,
    method: str = "ghn3-orth",
    *,
    ghn: str | os.PathLike[str] | GHN | None = None,
    device: str | torch.device | None = None,
    head: str = "auto",
    norms: str = "auto",
    noise: float | None = None,
    orth_start: int | float | None = None,
    seed: int = 0,
    example_inputs: Any = None,
    include_frozen: bool = False,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Initialize a model in place with parameters that a graph hypernetwork predicts.

    Arguments:
        model: any `nn.Module`; it stays on its device and in its dtype. DataParallel,
            DistributedDataParallel and torch.compile wrappers are looked into.
        method: `"ghn3-orth"` (default), `"ghn3"`, `"ghn2-orth"`, `"ghn2"`; or a baseline without
            a checkpoint: `"orth"` (orthogonal, Saxe et al., 2013) or `"rand"` (the model's own
            initialization, left as it is).
        ghn: checkpoint: a name or path as in `load_ghn`, or a loaded hypernetwork. Default:
            `"ghn3xlm16"` for the ghn3 methods, `"ghn2"` for the ghn2 ones; where ghn3xlm16 is
            neither cached nor can be fetched, `"embedded"`, with a warning that the report has
            too. A checkpoint that is named is never replaced by another.
        device: where the hypernetwork computes. Default: where a given hypernetwork is, else CPU.
        head: `"auto"` (default) predicts the classification layer only if its number of classes
            is the checkpoint's, else leaves it; `"predict"`; `"keep"`.
        norms: `"auto"` (default) predicts the weights and biases of normalisation layers, but with
            the embedded checkpoint not those of layer norms (group and RMS norms included), of
            which it has seen too few; `"predict"` all of them; `"keep"` the model's own.
        noise: beta of Eq. 1 of the second paper. Default: 1e-5, and 3e-5 for `*-orth`.
        orth_start: L of the second paper, for methods with `orth`: the layer from which weights
            are post-processed, as an index counted from 1 (int) or as a share of the depth
            (float). Default: 0.685 for `*-orth`, ResNet-50's 37 of 54, but 1 with the embedded
            checkpoint, whose tensors are repeated in all layers; 1 for `"orth"`. Layers are the
            convolution and linear weights in the order of the graph.
        seed: of the noise and of other random values. The global RNG is neither read nor changed.
        example_inputs: as in `trace`.
        include_frozen: also write parameters with `requires_grad=False`, which are left by
            default.
        return_report: return `(model, report)`.

    Without `-orth` every convolution and linear weight but the classifier gets the noise; with
    it, those from L on get the noise and the orthogonal step, and earlier ones stay as predicted.
    What no primitive fits is left, and named in the report. A model on the meta device is given
    memory where the hypernetwork computes.

    Returns: the same model.

    Raises:
        GHNInitError: on any bad argument, model, input or checkpoint; the model is then exactly
            as it was.
    """
    settings = _check(method, head, norms, noise, orth_start, seed)
    if ghn is not None and settings.arch is None:
        raise GHNInitError(f"method {method!r} uses no checkpoint: leave ghn out.")
    check_traceable(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    report = Report(
        type(model).__name__,
        method,
        None,
        "",
        seed,
        settings.noise or None,
        None,
        shapes,
    )
    if method == "rand":
        left = dict.fromkeys(shapes, "method rand leaves the model's own initialization")
        report = replace(report, left=left)
        return (model, report) if return_report else model
    hypernetwork, warning = _hypernetwork(settings, ghn, device)
    report = replace(report, notes=(warning,) if warning else ())
    graph = trace(model, example_inputs)
    tensors, report = _initial_values(graph, hypernetwork, settings, report)
    if not include_frozen:
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad and n in tensors]
        report = _without(report, frozen, "frozen (requires_grad=False); see include_frozen")
        tensors = {n: t for n, t in tensors.items() if n not in frozen}
    check_writable(model, tensors)
    assign(model, tensors, seed)
    return (model, report) if return_report else model


def predict(
    model: nn.Module | Sequence[nn.Module],
    ghn: str | os.PathLike[str] | GHN,
    graph: Graph | Sequence[Graph] | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    example_inputs: Any = None,
) -> Any:
    """Predict a model's parameters; the model is not touched, and no noise is added.

    Arguments:
        model: a model, or a list of models to be decoded as one batch.
        ghn: a hypernetwork, or its name or path as in `load_ghn`.
        graph: the model's graph (a list of graphs for a list of models), if already traced.
        head: as in `apply`.
        seed: of the class tokens' rows in positional embeddings, the only random values.
        example_inputs: as in `trace`, for every model.

    Returns: `{parameter name: tensor}` on the hypernetwork's device, in float32; for a list of
        models a list of them. Parameters that cannot be predicted are missing: `graph.left`
        has the reasons.

    Raises:
        GHNInitError: on any bad argument, model, input or checkpoint.
    """
    _check_choice("head", head, HEADS)
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models:
        raise GHNInitError("model is an empty list: give at least one model.")
    hypernetwork = ghn if isinstance(ghn, GHN) else load_ghn(ghn)
    if graph is None:
        graphs = [trace(m, example_inputs) for m in models]
    else:
        graphs = [graph] if isinstance(graph, Graph) else list(graph)
    if len(graphs) != len(models):
        raise GHNInitError(f"{len(models)} models and {len(graphs)} graphs: give one graph each.")
    with_head = [_predicts_head(g, hypernetwork, head) for g in graphs]
    with plain_modes(), torch.no_grad(), torch.device("cpu"):
        found = predict_graphs(graphs, hypernetwork, with_head, seed)
        predicted = [{n: t.float() for n, t in tensors.items()} for tensors in found]
    return predicted[0] if isinstance(model, nn.Module) else predicted


# -- arguments


def _check(
    method: str,
    head: str,
    norms: str,
    noise: float | None,
    orth_start: float | None,
    seed: int,
) -> _Settings:
    _check_choice("method", method, METHODS)
    _check_choice("head", head, HEADS)
    _check_choice("norms", norms, NORM_LAYERS)
    orth = method.endswith("orth")
    arch = method.split("-")[0] if method.startswith("ghn") else None
    if noise is not None and (arch is None or not noise >= 0 or noise == float("inf")):
        what = f"method {method!r} adds no noise" if arch is None else f"it is {noise!r}"
        raise GHNInitError(f"noise: {what}. Give a number from 0 up, with a ghn method.")
    if noise is None:
        noise = 0.0 if arch is None else _NOISE_ORTH if orth else _NOISE
    if orth_start is not None and (not orth or isinstance(orth_start, bool) or orth_start < 0):
        what = f"it is {orth_start!r}" if orth else f"method {method!r} has no orthogonal step"
        raise GHNInitError(f"orth_start: {what}. Give a layer (int) or share of the depth (float).")
    if isinstance(orth_start, float) and orth_start > 1:
        raise GHNInitError(
            f"orth_start is {orth_start}: a float is a share of the depth, at most 1. "
            f"For a layer give an int: {int(orth_start)}."
        )
    if orth_start is None and not (arch and orth):  # all layers
        orth_start = 1
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise GHNInitError(f"seed is {seed!r}: give an integer of at most 64 bits.")
    return _Settings(method, arch, head, norms, seed, noise, orth_start)


def _check_choice(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise GHNInitError(f"unknown {what} {value!r}: choose one of {', '.join(known)}.")


def _hypernetwork(
    settings: _Settings,
    ghn: str | os.PathLike[str] | GHN | None,
    device: str | torch.device | None,
) -> tuple[GHN | None, str]:
    """The hypernetwork that a method needs, and a warning where it is not the usual one."""
    if settings.arch is None:
        return None, ""
    try:
        device = None if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise GHNInitError(f"device {device!r} cannot be used: {error}") from error
    warning = ""
    if ghn is None:
        loaded, warning = load_default(settings.arch, device or "cpu")
    elif isinstance(ghn, GHN):
        loaded = ghn if device in (None, ghn.device) else _moved(ghn, device)
    else:
        loaded = load_ghn(ghn, device or "cpu")
    if loaded.config.arch != settings.arch:
        raise GHNInitError(
            f"method {settings.method!r} needs a {settings.arch} checkpoint, and {loaded.name} "
            f"is a {loaded.config.arch}: use method="
            f"{settings.method.replace(settings.arch, loaded.config.arch)!r}."
        )
    return loaded, warning


def _moved(ghn: GHN, device: torch.device | None) -> GHN:
    """A copy on another device: the caller's hypernetwork stays where it is."""
    with torch.device("meta"):
        copy = GHN(ghn.config, ghn.name, ghn.origin, ghn.defaults)
    copy.load_state_dict({k: v.to(device) for k, v in ghn.state_dict().items()}, assign=True)
    return copy.requires_grad_(False).eval()


def _kept_norms(graph: Graph, ghn: GHN, norms: str) -> tuple[frozenset[str], str]:
    """Parameters of normalisation layers that are not predicted, and why."""
    if norms == "keep":
        return graph.norm_parameters(), 'normalisation layer kept (norms="keep")'
    if norms == "predict":
        return frozenset(), ""
    reason = (
        f"layer or group norm kept: checkpoint {ghn.name} has seen too few "
        '(norms="predict" predicts it)'
    )
    return graph.norm_parameters(NORMS - advice(ghn).norms), reason


def _predicts_head(graph: Graph, ghn: GHN, head: str) -> bool:
    return head == "predict" or (head == "auto" and graph.num_classes == ghn.config.num_classes)


# -- values


def _initial_values(
    graph: Graph, ghn: GHN | None, settings: _Settings, report: Report
) -> tuple[dict[str, Tensor], Report]:
    """Tensors to write, and the report about them."""
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.steps(ghn)
    layers = weight_layers(graph)
    # Whatever default device the caller has set, what is drawn is drawn on the CPU.
    with plain_modes(), torch.no_grad(), torch.device("cpu"):
        if ghn is None:
            drawn = [n for n in layers if n not in classifier_weights(graph)]
            tensors = {n: torch.randn(graph.shapes[n], generator=generator) for n in drawn}
            report = replace(report, left=_left(graph, tensors, "kept by method orth"))
        else:
            with_head = _predicts_head(graph, ghn, settings.head)
            (predicted,) = predict_graphs([graph], ghn, [with_head], settings.seed, repeat=False)
            kept, why = _kept_norms(graph, ghn, settings.norms)
            tensors = {name: t.float() for name, t in predicted.items() if name not in kept}
            report = replace(
                report,
                checkpoint=ghn.name,
                checkpoint_sha256=ghn.origin.sha256,
                checkpoint_source=ghn.origin.source,
                checkpoint_revision=ghn.origin.revision,
                predicted=tuple(n for n in graph.shapes if n in tensors),
                left=_left(graph, tensors, _head_reason(graph, ghn, settings.head)),
            )
            report = _without(report, kept, why)
        _check_finite(tensors)
        processed = post_process(graph, tensors, steps, generator)
    report = replace(
        report,
        orth_start=steps.first_layer(len(layers)) if steps.orth else None,
        notes=report.notes + graph.notes + (_token_notes(graph) if ghn is not None else ()),
        postprocessed=tuple(processed.tensors),
        rank_deficient=processed.rank_deficient,
    )
    return tensors | processed.tensors, report


def _left(graph: Graph, tensors: Mapping[str, Tensor], otherwise: str) -> dict[str, str]:
    return {n: graph.left.get(n, otherwise) for n in graph.shapes if n not in tensors}


def _head_reason(graph: Graph, ghn: GHN, head: str) -> str:
    if head == "keep":
        return 'classification layer kept (head="keep")'
    return (
        f"classification layer of {graph.num_classes} classes, the checkpoint's has "
        f'{ghn.config.num_classes} (head="predict" predicts it all the same)'
    )


def _token_notes(graph: Graph) -> tuple[str, ...]:
    return tuple(
        f"{node.param}: rows for class tokens drawn from N(0, 0.02), the others predicted"
        for node in graph.nodes
        if node.op == "pos_enc" and node.shape and class_tokens(node.shape)
    )


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        return
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()])
    for name, is_finite in zip(tensors, finite.tolist(), strict=True):  # a GPU is waited for once
        if not is_finite:
            raise GHNInitError(
                f"the checkpoint predicts values for {name} that are not finite: it does not suit "
                "this model. Use another checkpoint."
            )


def _without(report: Report, names: Collection[str], reason: str) -> Report:
    """The report with some parameters left after all."""
    if not names:
        return report
    left = {n: reason if n in names else report.left.get(n, "") for n in report.shapes}
    return replace(
        report,
        predicted=tuple(n for n in report.predicted if n not in names),
        postprocessed=tuple(n for n in report.postprocessed if n not in names),
        left={n: left[n] for n in report.shapes if n in names or n in report.left},
    )
