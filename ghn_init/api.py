"""The main job: model -> trace -> graph -> method -> post-process -> assign -> report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.isolation import plain_modes
from ghn_init.graph.tracing import check_traceable, is_sharded, trace
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.loading.load import load_ghn
from ghn_init.loading.state_files import StateFiles, Target, independent
from ghn_init.methods.kept import kept_head
from ghn_init.methods.values import NewValues, new_values
from ghn_init.methods.variants import Variant
from ghn_init.preparation import Checkpoint as Checkpoint
from ghn_init.preparation import Options, check_head, prepare
from ghn_init.progress import notice
from ghn_init.report import Report, untouched_report
from ghn_init.weights.assignment import assign, write_buffers
from ghn_init.weights.equalized import with_equalized
from ghn_init.weights.meta import is_on_meta
from ghn_init.weights.postprocess import without_factors
from ghn_init.weights.recomputing import Recomputing
from ghn_init.weights.spectral import has_spectral_norms, update_spectral_norms
from ghn_init.weights.tiling import repeated, repeated_all


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
        progress: show the progress on stderr, by layer or step, of what takes more than 2 seconds.
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
    that share memory the first is written. A model that is offloaded is refused: apply before.

    A model that is spread over processes (FSDP2, FSDP1 with `use_orig_params=True`, tensor
    parallel) is initialized where it is, if all of its processes call `apply` with the same
    arguments: each writes its part of what one process would write, and has no more whole layers in
    memory than it works on. If one fails, all do. What needs the whole model at once (methods that
    run it or take images, labels or a source; spectral norms; the meta device) is refused.

    The same arguments give the same tensors to the bit on one kind of processor with one number of
    threads. With another, rounding differs by some 2e-7, which the orthogonal step can enlarge to
    2e-3 where the channels of a predicted weight are nearly equal.

    Returns: the same model.

    Raises:
        GHNInitError: on any bad argument, model, input or checkpoint; the model is then exactly
            as it was.
    """
    options = Options(
        ghn, device, head, norms, noise, orth_start, steps, images, labels, source, state, progress,
        seed, example_inputs, include_frozen, include_deliberate,
    )  # fmt: skip
    if is_sharded(model):
        from ghn_init.sharded import apply_sharded  # here: it imports much of torch.distributed

        report = apply_sharded(model, method, options)
        return (model, report) if return_report else model
    variant = options.variant(method)
    check_traceable(model)
    if variant.method.values is None and not variant.refines:
        report = untouched_report(model, variant, seed, assign(model, {}, seed))
        return (model, report) if return_report else model
    prepared, own = prepare(model, variant, options)
    values = new_values(prepared.job, variant, prepared.processing, own.parameters)
    unseen = own.unseen(values.tensors)
    own = own.without(model, values.tensors)  # what is not needed any longer frees its memory
    notes = (*assign(model, values.tensors, seed, own), *unseen)
    buffers = (*write_buffers(model, values.buffers), *update_spectral_norms(model, values.tensors))
    report = prepared.report(values, buffers, *notes)
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
    check_head(head)
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
    model: nn.Module | Callable[[], nn.Module],
    path: str | os.PathLike[str],
    *,
    name: str,
    library: str = "",
    method: str | Variant = "ghn3-orth",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    **options: Any,
) -> Report:
    """Initialize a model and write its state dict, to a file or to a folder.

    A file loads with `safetensors.torch.load_model` and with `load_state_dict(strict=True)`; a
    folder with `huggingface_hub.load_torch_model`, and for a model of transformers with
    `from_pretrained`. The metadata name the model, method, checkpoint (with its sha256), seed and
    package version. What was there is replaced whole or not at all, also after a kill. As with
    `safetensors.torch.save_model`, tied tensors are stored once: then a file loads with
    `load_model` only. What safetensors cannot hold (extra state, sparse buffers) is not in the
    file, with a warning: then it loads with `strict=False`.

    A model larger than the memory is given as a function that builds it. Its layers are then
    initialized and written one after the other, with a few of them in memory at a time, and are the
    same to the bit. That is for hypernetworks: the new values of other methods are in memory
    together. The whole model is, too, where it has to run or to be looked at as a whole: for second
    steps; without norms that keep activations at one size; with spectral norms; or where tensors
    share a part of their memory.

    Arguments:
        model: the model, which is initialized in place; or a function without arguments that builds
            it.
        path: a file, whose name ends in `.safetensors`; or a folder, which is made if it is not
            there, and may hold nothing but an earlier export.
        name: the model's name, for the metadata.
        library: where the name is from, for the metadata.
        method: as in `apply`.
        dtype: what floating point numbers are rounded to in the file. Default: the model's.
        max_shard_size: size of a file in a folder, in bytes or such as `"5GB"`, the default. A
            model that is larger is split, and `model.safetensors.index.json` says where its
            tensors are.
        options: further keyword arguments of `apply`.

    Raises:
        GHNInitError: as `apply`, a bad argument, or the file cannot be written; what was there
            stays.
    """
    target, chosen = Target(path, dtype, max_shard_size), Options(**options)
    about = {"format": "pt", "model": name, "library": library}
    variant = chosen.variant(method)
    with target.open() as files:  # refuses a bad path before the work, not after it
        report = None
        if not isinstance(model, nn.Module) and not variant.refines:
            report = _export_by_layer(model, variant, chosen, files, about)
        if report is None:
            built = model if isinstance(model, nn.Module) else model()
            _, report = apply(built, method, **options, return_report=True)
            state = built.state_dict()
            files.begin(state, {**about, **report.metadata})
            files.put_rest(state, not chosen.progress)
            files.add_config(built)
    if files.missing:
        note = (
            f"{', '.join(files.missing)}: not in the file, as safetensors holds dense tensors "
            "only; load it with strict=False"
        )
        warnings.warn(note, stacklevel=2)
        report = replace(report, notes=(*report.notes, note))
    return report


def _export_by_layer(
    build: Callable[[], nn.Module],
    variant: Variant,
    options: Options,
    files: StateFiles,
    about: Mapping[str, str],
) -> Report | None:
    """Write a model that is never in memory as a whole; None if it has to be.

    Arguments:
        build: builds the model.
        variant: a method without second steps.
        options: of `apply`.
        files: to be written.
        about: metadata, beside what the report says.
    """
    with Recomputing() as memory:
        with notice("building the model with its own initialization ...", not options.progress):
            model = build()
        memory.made()
        check_traceable(model)
        state = model.state_dict()
        if is_on_meta(model) or has_spectral_norms(model):
            return None
        if variant.method.values is None:
            report = untouched_report(model, variant, options.seed, ())
            files.begin(state, {**about, **report.metadata})
        else:
            prepared, own = prepare(model, variant, options)
            if not prepared.job.writable <= independent(model, state):
                return None
            shapes = prepared.job.graph.shapes
            report = prepared.report(NewValues({}), ())
            files.begin(state, {**about, **report.metadata})

            def store(name: str, tensor: Tensor) -> None:
                files.put(name, repeated(tensor, shapes[name]).to(state[name].dtype))

            values = new_values(prepared.job, variant, prepared.processing, own.parameters, store)
            for name, tensor in values.tensors.items():
                store(name, tensor)
            for name, tensor in values.buffers.items():
                files.put(name, tensor.to(state[name].dtype))
            report = prepared.report(values, tuple(values.buffers))
        files.put_rest(state, not options.progress)
        files.add_config(model)
    return report
