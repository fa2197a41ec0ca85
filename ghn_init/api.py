"""The main job: model -> trace -> graph -> method -> post-process -> assign -> report."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ghn_init.devices import usable_device
from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path, check_safetensors_name
from ghn_init.graph.graph import Graph
from ghn_init.graph.isolation import plain_modes
from ghn_init.graph.tracing import check_traceable, trace
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.loading.writing import write_state
from ghn_init.methods.kept import HEADS, kept_head, kept_parameters
from ghn_init.methods.method import Job, Method
from ghn_init.methods.registry import METHODS
from ghn_init.methods.running import check_images, image_inputs
from ghn_init.methods.values import new_values, post_processing
from ghn_init.methods.variants import Variant, parse_method
from ghn_init.report import Report, report_of, untouched_report
from ghn_init.version import __version__
from ghn_init.weights.assignment import assign, write_buffers
from ghn_init.weights.equalized import with_equalized
from ghn_init.weights.meta import own_values
from ghn_init.weights.postprocess import without_factors
from ghn_init.weights.spectral import update_spectral_norms
from ghn_init.weights.tiling import repeated_all

Checkpoint = str | os.PathLike[str] | GHN
"""A hypernetwork, its name or its path."""


@overload
def apply(
    model: nn.Module,
    method: str | Variant = ...,
    *,
    ghn: Checkpoint | None = ...,
    device: str | torch.device | None = ...,
    head: str = ...,
    norms: str | None = ...,
    noise: float | None = ...,
    orth_start: float | None = ...,
    steps: int | None = ...,
    images: Tensor | None = ...,
    labels: Tensor | None = ...,
    source: Any = ...,
    state: str | os.PathLike[str] | None = ...,
    progress: bool = ...,
    seed: int = ...,
    example_inputs: Any = ...,
    include_frozen: bool = ...,
    include_deliberate: bool = ...,
    return_report: Literal[False] = ...,
) -> nn.Module: ...


@overload
def apply(
    model: nn.Module,
    method: str | Variant = ...,
    *,
    ghn: Checkpoint | None = ...,
    device: str | torch.device | None = ...,
    head: str = ...,
    norms: str | None = ...,
    noise: float | None = ...,
    orth_start: float | None = ...,
    steps: int | None = ...,
    images: Tensor | None = ...,
    labels: Tensor | None = ...,
    source: Any = ...,
    state: str | os.PathLike[str] | None = ...,
    progress: bool = ...,
    seed: int = ...,
    example_inputs: Any = ...,
    include_frozen: bool = ...,
    include_deliberate: bool = ...,
    return_report: Literal[True],
) -> tuple[nn.Module, Report]: ...


def apply(
    model: nn.Module,
    method: str | Variant = "ghn3-orth",
    *,
    ghn: Checkpoint | None = None,
    device: str | torch.device | None = None,
    head: str = "auto",
    norms: str | None = None,
    noise: float | None = None,
    orth_start: int | float | None = None,
    steps: int | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    source: Any = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    seed: int = 0,
    example_inputs: Any = None,
    include_frozen: bool = False,
    include_deliberate: bool = False,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Initialize a model in place, by default with parameters that a hypernetwork predicts.

    Arguments:
        model: any `nn.Module`; it stays on its device and in its dtype. DataParallel,
            DistributedDataParallel and torch.compile wrappers are looked into.
        method: a name in `ghn_init.METHODS`: `"ghn3-orth"` (default), `"ghn3"`, `"ghn2-orth"`,
            `"ghn2"`; or a baseline without a checkpoint: `"orth"` (orthogonal, Saxe et al., 2013)
            or `"rand"` (the model's own initialization, left as it is); or one that runs the model:
            `"lsuv"`, `"gradinit"`, `"nio"`, `"metainit"`. Settings may follow the name,
            `"ghn3-orth:noise=0,norms=keep"`, and second steps: `"ghn3-orth+lsuv"`.
        ghn: checkpoint: a name or path as in `load_ghn`, or a loaded hypernetwork. Default:
            `"ghn3xlm16"` for the ghn3 methods, `"ghn2"` for the ghn2 ones; where ghn3xlm16 is
            neither cached nor can be fetched, `"embedded"`, with a warning that the report has
            too. A checkpoint that is named is never replaced by another.
        device: where the hypernetwork computes. Default: where a given hypernetwork is, else CPU.
            Methods that run the model run it where it is.
        head: what becomes of the last layers, those without another weight between them and an
            output. `"auto"` (default) predicts them if they are a classification layer with the
            checkpoint's number of classes, else leaves them; `"predict"`; `"keep"`.
        norms: `"auto"` (default) predicts the weights and biases of those normalization layers
            that the checkpoint has learned to predict (the embedded one: all), and leaves the
            others; `"predict"` all of them; `"keep"` the model's own.
        noise: beta of Eq. 1 of the second paper. Default: 1e-5, and 3e-5 for `*-orth`.
        orth_start: L of the second paper, for methods with `orth`: the layer from which weights
            are post-processed, as an index counted from 1 (int) or as a share of the depth
            (float). Default: what suits the checkpoint, for published ones 0.685, ResNet-50's 37
            of 54; 1 for `"orth"`. Layers are the convolution and linear weights in the order of
            the graph.
        steps: for methods that take steps, how many. Default: the method's.
        images: `(B, C, H, W)`, normalized as for training, for methods that need images
            (`ghn_init.METHODS[name].needs`).
        labels: `(B,)`, the images' classes, for methods that need labels.
        source: for methods that take values from another model: that model, or its name or file.
        state: a file in which a method that takes minutes keeps how far it is: the same call goes
            on from there. Default: none.
        progress: show the progress of such a method on stderr.
        seed: of the noise and of other random values. The global RNG is neither read nor changed.
        example_inputs: as in `trace`.
        include_frozen: also write parameters with `requires_grad=False`, which are left by
            default.
        include_deliberate: also write parameters whose values no random initialization gives, which
            are left by default: weights that are zero (LoRA's B, a zero convolution), constant or
            an identity, and the biases of such layers.
        return_report: return `(model, report)`.

    Without `-orth` every convolution and linear weight but the classifier gets the noise; with
    it, those from L on get the noise and the orthogonal step, and earlier ones stay as predicted.
    What no primitive fits is left, and named in the report. Where no norm keeps activations at one
    size, the ends of residual branches, and layers before last layers that are kept, are scaled;
    the report says which, and warns if outputs may still be far larger or smaller.

    A model on the meta device is given memory where the hypernetwork computes, and what is not
    predicted of it its own initialization, for which it is built again on the CPU. Of parameters
    that share memory the first is written. A model that is sharded or offloaded is refused: apply
    before.

    The same arguments give the same tensors to the bit on one kind of processor with one number of
    threads. With another, rounding differs by some 2e-7, which the orthogonal step can enlarge to
    2e-3 where the channels of a predicted weight are nearly equal.

    Returns: the same model.

    Raises:
        GHNInitError: on any bad argument, model, input or checkpoint; the model is then exactly
            as it was.
    """
    variant = parse_method(method, noise=noise, orth_start=orth_start, norms=norms, steps=steps)
    given = {"images": images, "labels": labels, "source": source}
    _check_arguments(variant, ghn, head, seed, given)
    check_images(images, labels)
    check_traceable(model)
    if variant.method.values is None and not variant.refines:
        report = untouched_report(model, variant, seed, assign(model, {}, seed))
        return (model, report) if return_report else model
    hypernetwork, warning = _hypernetwork(variant.method, ghn, device)
    if example_inputs is None and images is not None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
        example_inputs = image_inputs(model, images[:2].to("meta", dtype))
    graph = trace(model, example_inputs)
    own = own_values(model, seed)
    graph = with_equalized(graph, own.parameters)
    choices = (head, include_frozen, include_deliberate)
    kept = kept_parameters(model, graph, hypernetwork, variant, *choices, own.parameters)
    job = Job(
        model,
        graph,
        {name: None for name in graph.shapes if name not in kept}.keys(),
        torch.Generator().manual_seed(seed),
        seed,
        hypernetwork,
        **given,
        state=None if state is None else Path(state),
        silent=not progress,
        example_inputs=example_inputs,
    )
    processing = post_processing(variant, hypernetwork)
    values = new_values(job, variant, processing, own.parameters)
    unseen = own.unseen(values.tensors)
    own = own.without(model, values.tensors)  # what is not needed any longer frees its memory
    notes = (*([warning] if warning else []), *assign(model, values.tensors, seed, own), *unseen)
    buffers = (*write_buffers(model, values.buffers), *update_spectral_norms(model, values.tensors))
    report = report_of(job, variant, processing, kept, values, buffers, notes)
    return (model, report) if return_report else model


def predict(
    model: nn.Module | Sequence[nn.Module],
    ghn: Checkpoint,
    graph: Graph | Sequence[Graph] | None = None,
    *,
    head: str = "auto",
    seed: int = 0,
    example_inputs: Any = None,
    differentiable: bool = False,
) -> Any:
    """Predict a model's parameters; the model is not touched, and no noise is added.

    Arguments:
        model: a model, or a list of models to be decoded as one batch.
        ghn: a hypernetwork, or its name or path as in `load_ghn`.
        graph: the model's graph (a list of graphs for a list of models), if already traced.
        head: as in `apply`.
        seed: of the class tokens' rows in positional embeddings, the only random values.
        example_inputs: as in `trace`, for every model.
        differentiable: let gradients flow from the tensors to the hypernetwork's weights, to train
            it through `torch.func.functional_call(model, tensors, inputs)` (GHN-3 paper, Eq. 2).

    Returns: `{parameter name: tensor}` on the hypernetwork's device, in float32; for a list of
        models a list of them. Parameters that cannot be predicted are missing: `graph.left`
        has the reasons.

    Raises:
        GHNInitError: on any bad argument, model, input or checkpoint; or gradients are asked for
            where no weight of the hypernetwork takes them.
    """
    _check_choice("head", head, HEADS)
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models:
        raise GHNInitError("model is an empty list: give at least one model.")
    hypernetwork = ghn if isinstance(ghn, GHN) else load_ghn(ghn)
    if differentiable and not any(p.requires_grad for p in hypernetwork.parameters()):
        raise GHNInitError(
            "differentiable=True, and all weights of the hypernetwork are frozen: give "
            "ghn=load_ghn(..., trainable=True)."
        )
    if graph is None:
        graphs = [trace(m, example_inputs) for m in models]
    else:
        graphs = [graph] if isinstance(graph, Graph) else list(graph)
    if len(graphs) != len(models):
        raise GHNInitError(f"{len(models)} models and {len(graphs)} graphs: give one graph each.")
    wanted = [g.shapes.keys() - kept_head(g, hypernetwork, head) for g in graphs]
    with plain_modes(), torch.set_grad_enabled(differentiable), torch.device("cpu"):
        found = predict_graphs(graphs, hypernetwork, wanted, seed)
        graphs = [
            with_equalized(g, {n: p for n, p in m.named_parameters() if not p.is_meta})
            for m, g in zip(models, graphs, strict=True)
        ]
        params = [without_factors(f, g) for f, g in zip(found, graphs, strict=True)]
        whole = [repeated_all(p, g.shapes) for p, g in zip(params, graphs, strict=True)]
        predicted = [{n: t.float() for n, t in tensors.items()} for tensors in whole]
    return predicted[0] if isinstance(model, nn.Module) else predicted


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str,
    library: str = "",
    method: str | Variant = "ghn3-orth",
    **options: Any,
) -> Report:
    """Initialize a model and write its state dict.

    The file loads with `safetensors.torch.load_model` and with `load_state_dict(strict=True)`.
    Its metadata names the model, method, checkpoint (with its sha256), seed and package version.
    It is replaced whole or not at all. As with `safetensors.torch.save_model`, tied tensors are
    stored once: then it loads with `load_model` only. What safetensors cannot hold (extra state,
    sparse buffers) is not in the file, with a warning: then it loads with `strict=False`.

    Arguments:
        model: the model; it is initialized in place.
        path: file to write, `.safetensors`.
        name: the model's name, for the metadata.
        library: where the name is from, for the metadata.
        method: as in `apply`.
        options: further keyword arguments of `apply`.

    Raises:
        GHNInitError: as `apply`, or the file cannot be written; a file that was there stays.
    """
    check_safetensors_name(path)
    with atomic_path(path) as temporary:  # refuses a bad path before the work, not after it
        _, report = apply(model, method, **options, return_report=True)
        metadata = {
            "format": "pt",
            "model": name,
            "library": library,
            "method": report.method,
            "checkpoint": report.checkpoint or "",
            "checkpoint_sha256": report.checkpoint_sha256,
            "checkpoint_source": report.checkpoint_source,
            "checkpoint_revision": report.checkpoint_revision or "",
            "seed": str(report.seed),
            "ghn_init_version": __version__,
        }
        missing = write_state(temporary, model.state_dict(), metadata)
    if missing:
        note = (
            f"{', '.join(missing)}: not in the file, as safetensors holds dense tensors only; load "
            "it with strict=False"
        )
        warnings.warn(note, stacklevel=2)
        report = replace(report, notes=(*report.notes, note))
    return report


# -- arguments


def _check_arguments(
    variant: Variant,
    ghn: Checkpoint | None,
    head: str,
    seed: int,
    given: Mapping[str, object],
) -> None:
    _check_choice("head", head, HEADS)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise GHNInitError(f"seed is {seed!r}: give an integer of at most 64 bits.")
    if ghn is not None and variant.method.hypernetwork is None:
        raise GHNInitError(f"method {variant.name!r} uses no checkpoint: leave ghn out.")
    for name, value in given.items():
        if value is None and name in variant.needs:
            raise GHNInitError(f"method {variant.name!r} needs {name}: give {name}=.")
        if value is not None and name not in variant.uses:
            raise GHNInitError(f"method {variant.name!r} uses no {name}: leave {name} out.")


def _check_choice(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise GHNInitError(f"unknown {what} {value!r}: choose one of {', '.join(known)}.")


def _hypernetwork(
    method: Method, ghn: Checkpoint | None, device: str | torch.device | None
) -> tuple[GHN | None, str]:
    """The hypernetwork that a method needs, and a warning where it is not the usual one."""
    if method.hypernetwork is None:
        return None, ""
    device = None if device is None else usable_device(device)
    warning = ""
    if ghn is None:
        loaded, warning = load_default(method.hypernetwork, device or "cpu")
    elif isinstance(ghn, GHN):
        loaded = ghn if device in (None, ghn.device) else copy.deepcopy(ghn).to(device)
    else:
        loaded = load_ghn(ghn, device or "cpu")
    if (arch := loaded.config.arch) != method.hypernetwork:
        fitting = [
            repr(other.name)
            for other in METHODS.values()
            if other.hypernetwork == arch and other.orthogonal == method.orthogonal
        ]
        raise GHNInitError(
            f"method {method.name!r} needs a {method.hypernetwork} checkpoint, and {loaded.name} "
            f"is a {arch}: use method={' or '.join(fitting) or 'another'}."
        )
    return loaded, warning
