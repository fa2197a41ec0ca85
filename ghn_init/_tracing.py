"""`trace`: a model's graph, from given or guessed inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ._errors import GHNInitError
from ._graph import Graph
from ._inputs import Inputs, given_inputs, likely_inputs
from ._primitives import trace_graph
from ._trace import NeedsNumbers

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
    first = None
    for training in (True, False):  # every size in training mode first: it shows auxiliary heads
        need_numbers: list[Inputs] = []
        for fake in (True, False):
            for inputs in candidates if fake else need_numbers:
                try:
                    graph = trace_graph(model, inputs, training, fake)
                except GHNInitError as error:
                    first = first or error
                    need_numbers += [inputs] if isinstance(error, NeedsNumbers) else []
                else:
                    notes = () if training else (_IN_EVALUATION_MODE,)
                    return replace(graph, notes=notes if fake else (*notes, _ON_NUMBERS))
    assert first is not None
    tried = f" Tried: {'; '.join(map(str, candidates))}." if guessed else ""
    raise GHNInitError(f"{first}{tried}") from first


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
    params = list(model.named_parameters())
    if not params:
        raise GHNInitError(f"{type(model).__name__} has no parameters: nothing to initialize.")
    for name, param in params:
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise GHNInitError(
                f"{name} has no shape yet (a lazy module): run the model once on real data first."
            )
