"""`trace`: a model's graph, from given or guessed inputs."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake

from ghn_init.errors import GHNInitError
from ghn_init.graph.builder import trace_graph
from ghn_init.graph.graph import Graph
from ghn_init.graph.inputs import Inputs, given_inputs, likely_inputs
from ghn_init.graph.passes import NeedsNumbers, Pass, has_user_hooks
from ghn_init.graph.surroundings import Surroundings, nothing_left

_IN_EVALUATION_MODE = (
    "traced in evaluation mode, as the model does not run on the inputs in training mode: parts "
    "that only training mode uses are missing"
)
_SKIPPED = (
    "in training mode the forward pass skips layers: they are traced as evaluation mode runs them"
)
_ON_NUMBERS = "traced on random numbers, as the forward pass depends on the numbers it computes"

SHARDING = ("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed._")
"""Starts of the names of the modules whose classes spread a model over processes."""


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
    with nothing_left() as around:
        return _Search(model, around).graph(example_inputs)


class _Search:
    """Looks for inputs on which a model runs, and for a way to run it."""

    def __init__(self, model: nn.Module, around: Surroundings) -> None:
        self.model, self.around = model, around
        self.errors: list[GHNInitError] = []

    def graph(self, example_inputs: Any) -> Graph:
        guessed = example_inputs is None
        candidates = list(likely_inputs(self.model)) if guessed else [given_inputs(example_inputs)]
        if guessed and has_user_hooks(self.model):
            candidates = self._without_hooks(candidates)
        tried = f" Tried: {'; '.join(map(str, candidates))}." if guessed else ""
        for how in (Pass(), Pass(copied=False)):
            # Every size in training mode first: it shows auxiliary heads.
            for training in (True, False):
                found = self._first_that_runs(candidates, replace(how, training=training))
                if found is not None:
                    return self._complete(*found)
            candidates = candidates[:1]  # the model itself is run only if no copy of it runs
        raise GHNInitError(f"{self.errors[0]}{tried}") from self.errors[0]

    def _without_hooks(self, candidates: list[Inputs]) -> list[Inputs]:
        """The inputs on which the model runs without its users' hooks, in front of the others.

        Hooks are part of what a model computes, and are called; but once, and not for each size.
        """
        for how in (Pass(hooks=False), Pass(hooks=False, training=False)):
            if (found := self._first_that_runs(candidates, how)) is not None:
                return [found[0], *(inputs for inputs in candidates if inputs is not found[0])]
        return candidates

    def _first_that_runs(
        self, candidates: Sequence[Inputs], how: Pass
    ) -> tuple[Inputs, Pass, Graph] | None:
        """The first inputs on which the model runs; why it did not run on others is kept.

        Real numbers are given to the model only if it does not run without: on the inputs for
        which it asked for numbers, and on the likeliest ones, as it may have asked for numbers in
        a way that looks like any other error.
        """
        asked: list[Inputs] = []
        for inputs in candidates:
            try:
                return inputs, how, self._trace(inputs, how)
            except NeedsNumbers:
                asked.append(inputs)
            except GHNInitError:
                pass
        on_meta = any(param.is_meta for param in self.model.parameters())
        others = [] if on_meta else [c for c in _likeliest(candidates) if c not in asked]
        for inputs in (*asked, *others):
            try:
                with_numbers = replace(how, numbers=True)
                return inputs, with_numbers, self._trace(inputs, with_numbers)
            except GHNInitError:
                pass
        return None

    def _trace(self, inputs: Inputs, how: Pass) -> Graph:
        try:
            return trace_graph(self.model, inputs, how, self.around)
        except GHNInitError as error:
            self.errors.append(error)
            raise

    def _complete(self, inputs: Inputs, how: Pass, graph: Graph) -> Graph:
        """The graph with the layers that a pass in training mode skipped, and with notes."""
        notes = []
        if how.training and graph.unused():
            complete = self._with_skipped(inputs, how, graph)
            notes = [_SKIPPED] if complete is not graph else []
            graph = complete
        if len(graph.unused()) == len(graph.shapes):
            raise GHNInitError(
                f"no output of {type(self.model).__name__} depends on a parameter, as far as it "
                "can be traced: there is nothing to predict."
            )
        if not how.training:
            notes.append(_IN_EVALUATION_MODE)
        if how.numbers:
            notes.append(_ON_NUMBERS)
        return replace(graph, notes=(*notes, *graph.notes))

    def _with_skipped(self, inputs: Inputs, how: Pass, graph: Graph) -> Graph:
        """The graph of a pass that uses more parameters, if evaluation mode shows that one can.

        Layers that are skipped at random (stochastic depth, LayerDrop) are not in evaluation
        mode; auxiliary heads are in training mode only. Where a model has both, evaluation mode
        is for the modules around the skipped layers alone.
        """
        found = self._first_that_runs([inputs], replace(how, training=False, numbers=False))
        if found is None or not (skipped := graph.unused() - found[2].unused()):
            return graph
        if found[2].unused() <= graph.unused():
            return found[2]
        around = _modules_around(self.model, skipped, graph.unused())
        mixed = self._first_that_runs([inputs], replace(how, evaluated=around, numbers=False))
        graphs = [graph, found[2], *([mixed[2]] if mixed else [])]
        return min(graphs, key=lambda g: len(g.unused()))


def _likeliest(candidates: Sequence[Inputs]) -> list[Inputs]:
    """The first input of each kind: an image, a list of images."""
    kinds = {tuple(type(arg) for arg in inputs.args): inputs for inputs in reversed(candidates)}
    return list(reversed(kinds.values()))


def _modules_around(
    model: nn.Module, skipped: Collection[str], unused: Collection[str]
) -> frozenset[str]:
    """Names of the modules that may have skipped parameters: their layers, and who calls these."""
    modules, around = dict(model.named_modules()), set()
    for name in skipped:
        path = name.rpartition(".")[0]
        while path and _all_within(model, path.rpartition(".")[0], unused):
            path = path.rpartition(".")[0]
        around.add(path)
        while path:
            path = path.rpartition(".")[0]
            around.add(path)
            if not isinstance(modules[path], (nn.ModuleList, nn.ModuleDict)):
                break
    return frozenset(around)


def _all_within(model: nn.Module, path: str, names: Collection[str]) -> bool:
    module = model.get_submodule(path)
    return all(name in names for name, _ in module.named_parameters(path))


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
    any_params = False
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise GHNInitError(
                f"{name or 'model'} is a ScriptModule: initialize the model it was made from, "
                "and script or trace it afterwards."
            )
        own = {name: param for name, param in module._parameters.items() if param is not None}
        _check_in_one_place(name, module, own)
        any_params = any_params or bool(own)
    if not any_params:
        raise GHNInitError(f"{type(model).__name__} has no parameters: nothing to initialize.")


def _check_in_one_place(name: str, module: nn.Module, own: Mapping[str, nn.Parameter]) -> None:
    """Refuse modules whose parameters this process does not hold, or not whole, or not as such."""
    if _is_in_parts(module):
        raise GHNInitError(
            f"{name or 'model'} is sharded, which only apply takes: trace or predict before "
            "sharding."
        )
    if "_hf_hook" in vars(module) and any(param.is_meta for param in own.values()):
        raise GHNInitError(
            f"{name or 'model'} is offloaded by accelerate: apply before offloading."
        )
    for param, value in own.items():
        if nn.parameter.is_lazy(value):  # in torch 2.4 isinstance takes every subclass for one
            raise GHNInitError(
                f"{f'{name}.' if name else ''}{param} has no shape yet (a lazy module): run the "
                "model once on real data first."
            )
        of_its_own = type(value) is not nn.Parameter and is_fake(value)
        if of_its_own or torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise GHNInitError(
                f"{f'{name}.' if name else ''}{param} is a fake tensor, or one inside of a "
                "torch.func transformation: initialize the model outside of it."
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is spread over processes."""
    return isinstance(model, nn.Module) and any(map(_is_in_parts, model.modules()))


def _is_in_parts(module: nn.Module) -> bool:
    """Whether a module, or what it holds itself, is."""
    own = [param for param in module._parameters.values() if param is not None]
    parts = any(_of_a_part(type(param)) or hasattr(param, "ds_id") for param in own)
    return parts or _of_a_part(type(module))  # type: ignore[arg-type]  # every class is hashable


@functools.cache
def _of_a_part(kind: type) -> bool:
    """Whether a class is for models in parts: FSDP (1 or 2), DTensor (tensor parallel) and so on.

    By name, so that nothing of torch.distributed is imported.
    """
    return any(cls.__module__.startswith(SHARDING) for cls in kind.__mro__)
