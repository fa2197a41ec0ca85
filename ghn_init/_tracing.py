"""`trace`: a model's graph, from given or guessed inputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._errors import GHNInitError
from ._graph import Graph
from ._inputs import given_inputs, likely_inputs
from ._primitives import trace_graph


def trace(model: nn.Module, example_inputs: Any = None) -> Graph:
    """Trace a model into the computational graph that a graph hypernetwork reads.

    The model runs once on fake tensors, in training mode: nothing is computed, and its
    parameters, buffers and mode, and the global RNG, are left as they are. The graph does not
    depend on the weights nor on the mode.

    Arguments:
        model: any `nn.Module` that runs eagerly.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments
            for `model.forward`; only shapes and dtypes count. Default: a batch of two images of
            the size that the model states or, failing that, of the usual ones in turn.

    Raises:
        GHNInitError: the model has no parameters, or does not run on the inputs.
    """
    if not isinstance(model, nn.Module):
        raise GHNInitError(f"model is a {type(model).__name__}: give a torch.nn.Module.")
    if next(model.parameters(), None) is None:
        raise GHNInitError(f"{type(model).__name__} has no parameters: nothing to initialize.")
    if example_inputs is not None:
        return trace_graph(model, given_inputs(example_inputs))
    tried, first = [], None
    for inputs in likely_inputs(model):
        try:
            return trace_graph(model, inputs)
        except GHNInitError as error:
            tried.append(str(inputs))
            first = first or error
    raise GHNInitError(f"{first} Tried: {'; '.join(tried)}.") from first
