"""`trace`: a model's graph, from given or guessed inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake

from ghn_init.errors import GHNInitError
from ghn_init.graph.builder import trace_graph
from ghn_init.graph.graph import Graph
from ghn_init.graph.inputs import given_inputs, likely_inputs
from ghn_init.graph.recorder import Inputs, NeedsNumbers

_IN_EVALUATION_MODE = (
    "traced in evaluation mode, as the model does not run on the inputs in training mode: parts "
    "that only training mode uses are missing"
)
_ON_NUMBERS = "traced on random numbers, as the forward pass depends on the numbers it computes"


def trace(model: nn.Module, example_inputs: Any = None) -> Graph:
    """Trace a model into the computational graph that a graph hypernetwork reads.

    The model runs once on meta tensors, in training mode: nothing is computed, and its
    parameters, buffers and mode, and the global RNG, are left as they are. The graph does not
    depend on the weights nor on the mode. (A model whose forward depends on the numbers it computes
    runs on random ones, and one that does not run in training mode, as a detector without
    targets, in evaluation mode; the graph's notes say so.)

    Arguments:
        model: any `nn.Module` that runs eagerly.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments
            for `model.forward`; only shapes and dtypes count. Default: a batch of two images of
            the size that the model states or, failing that, of the usual ones in turn.

    Raises:
        GHNInitError: the model has no parameters, or does not run on the inputs.
    """
    check_traceable(model)
    inner, prefix = unwrapped(model)
    graph = _trace_plain(inner, example_inputs)
    return graph.with_prefix(prefix) if prefix else graph


def _trace_plain(model: nn.Module, example_inputs: Any) -> Graph:
    guessed = example_inputs is None
    candidates = list(likely_inputs(model)) if guessed else [given_inputs(example_inputs)]
    errors: list[GHNInitError] = []
    for training in (True, False):  # every size in training mode first: it shows auxiliary heads
        graph = _first_that_runs(model, candidates, training, errors)
        if graph is not None:
            return graph if training else replace(graph, notes=(_IN_EVALUATION_MODE, *graph.notes))
    tried = f" Tried: {'; '.join(map(str, candidates))}." if guessed else ""
    raise GHNInitError(f"{errors[0]}{tried}") from errors[0]


def _first_that_runs(
    model: nn.Module, candidates: Sequence[Inputs], training: bool, errors: list[GHNInitError]
) -> Graph | None:
    """The graph from the first inputs on which the model runs; why it did not, into `errors`.

    Real numbers are given to the model only if it asks for them on all of the inputs that it takes.
    """
    need_numbers: list[Inputs] = []
    for inputs in candidates:
        try:
            return trace_graph(model, inputs, training)
        except GHNInitError as error:
            errors.append(error)
            need_numbers += [inputs] if isinstance(error, NeedsNumbers) else []
    for inputs in need_numbers:
        try:
            return replace(trace_graph(model, inputs, training, fake=False), notes=(_ON_NUMBERS,))
        except GHNInitError as error:
            errors.append(error)
    return None


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside of DataParallel, DistributedDataParallel and torch.compile.

    Returns: the model, and what the wrappers put before its parameters' names.
    """
    prefix = ""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model, prefix = model.module, f"{prefix}module."
        elif isinstance(compiled := model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            model, prefix = compiled, f"{prefix}_orig_mod."
        else:
            return model, prefix


def check_traceable(model: nn.Module) -> None:
    """Refuse what is no model of eager modules, or has no parameters of known shape.

    Raises:
        GHNInitError: saying so.
    """
    if not isinstance(model, nn.Module):
        raise GHNInitError(f"model is a {type(model).__name__}: give a torch.nn.Module.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise GHNInitError(
                f"{name or 'model'} is a ScriptModule: initialize the model it was made from, "
                "and script or trace it afterwards."
            )
        _check_in_one_place(name, module)
    params = list(model.named_parameters())
    if not params:
        raise GHNInitError(f"{type(model).__name__} has no parameters: nothing to initialize.")
    for name, param in params:
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise GHNInitError(
                f"{name} has no shape yet (a lazy module): run the model once on real data first."
            )


def _check_in_one_place(name: str, module: nn.Module) -> None:
    """Refuse modules whose parameters this process does not hold, or not whole, or not as such."""
    own = dict(module.named_parameters(recurse=False))
    if any(_is_sharded(thing) for thing in (module, *own.values())):
        raise GHNInitError(f"{name or 'model'} is sharded: apply before sharding.")
    if hasattr(module, "_hf_hook") and any(param.is_meta for param in own.values()):
        raise GHNInitError(f"{name} is offloaded by accelerate: apply before offloading.")
    for param, value in own.items():
        if is_fake(value) or torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise GHNInitError(
                f"{f'{name}.' if name else ''}{param} is a fake tensor, or one inside of a "
                "torch.func transformation: initialize the model outside of it."
            )


def _is_sharded(thing: object) -> bool:
    """Whether it is of FSDP (1 or 2), tensor parallelism (DTensor), ShardedTensor or DeepSpeed."""
    names = ("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed._")
    return hasattr(thing, "ds_id") or any(
        kind.__module__.startswith(names) for kind in type(thing).__mro__
    )
