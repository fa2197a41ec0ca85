"""Model -> recording of ATen operators, without arithmetic and without touching the model.

A copy of the model (see `copies`) runs once on meta tensors (sizes, no storage) while a recorder
writes down the operators. Meta tensors are on no device: a model that insists on one is run on
fake tensors, which are meta tensors that claim to be somewhere. Where the forward pass asks for
numbers (how many boxes a detector keeps, say), neither can answer: it runs on real tensors.

A copy is safer than to run the model itself and to put back what has changed: nothing has to be
found, another thread may use the model meanwhile, and an interrupt does no harm. Where no copy can
be made, or the forward pass reaches the original's parameters from a copy (by a registry of
modules, say), the model itself is run.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode, fake_tensor
from torch.utils import _pytree

from ghn_init.errors import GHNInitError
from ghn_init.graph.copies import Copies, NotCopyable
from ghn_init.graph.inputs import Inputs
from ghn_init.graph.isolation import (
    isolated_rng,
    plain_attention,
    plain_modes,
    quiet_fakes,
    set_modes,
)
from ghn_init.graph.meta_recorder import MetaRecorder
from ghn_init.graph.recorder import (
    NoOutput,
    NumberRecorder,
    Recorder,
    single_number,
)
from ghn_init.graph.recording import Recording
from ghn_init.graph.sizes import meta_like
from ghn_init.graph.surroundings import Saved, Surroundings


class NeedsNumbers(GHNInitError):
    """The forward pass depends on numbers that meta and fake tensors do not have."""


@dataclass(frozen=True)
class Pass:
    """How a model is run.

    Arguments:
        training: the mode to run in, whatever mode the model is in.
        numbers: run on real tensors, which takes the time of a forward pass; else without numbers.
        hooks: call the hooks that users have registered, on what they hold a copy of.
        copied: run a copy of the model, unless none can be made; else the model itself.
        evaluated: names of modules that run in evaluation mode nevertheless.
    """

    training: bool = True
    numbers: bool = False
    hooks: bool = True
    copied: bool = True
    evaluated: frozenset[str] = frozenset()


def record(
    model: nn.Module,
    inputs: Inputs,
    how: Pass = Pass(),
    surroundings: Surroundings | None = None,
) -> Recording:
    """Record one forward pass as ATen operators.

    Arguments:
        model: any module that runs eagerly. It is left exactly as it was.
        inputs: example inputs.
        how: how to run.
        surroundings: where the pass is to say what it is going to touch and what it made.

    Raises:
        NeedsNumbers: if the model cannot run without numbers.
        GHNInitError: if the model does not run on the inputs.
    """
    error: Exception
    surroundings = surroundings or Surroundings()
    for run in (_on_numbers,) if how.numbers else _passes(model):
        try:
            with isolated_rng(), plain_attention(), plain_modes():
                return _copied_or_not(run, model, inputs, how, surroundings)
        except Exception as caught:  # whatever a user's forward raises
            traceback.clear_frames(caught.__traceback__)  # they hold the pass's tensors
            error = caught
            surroundings.restore()  # the next pass must not meet tensors of this one
    if isinstance(error, NoOutput):
        raise NoOutput(f"{type(model).__name__} has no output to trace: {error}") from error
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    kind = NeedsNumbers if not how.numbers and isinstance(error, _NUMBERLESS) else GHNInitError
    raise kind(
        f"{type(model).__name__} does not run on the example input ({inputs}): {reason}. "
        "Pass example_inputs=, a tensor (or a tuple, or a dict of keyword arguments) that "
        "the model's forward accepts."
    ) from error


_NUMBERLESS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)

_Run = Callable[[nn.Module, Inputs, Pass, Surroundings], Recording]


def _copied_or_not(
    run: _Run, model: nn.Module, inputs: Inputs, how: Pass, surroundings: Surroundings
) -> Recording:
    if how.copied:
        try:
            return run(model, inputs, how, surroundings)
        except NotCopyable as error:
            traceback.clear_frames(error.__traceback__)
    return run(model, inputs, replace(how, copied=False), surroundings)


# -- three ways to run a model


def _passes(model: nn.Module) -> tuple[_Run, ...]:
    """Ways to run without numbers, to be tried in turn."""
    # On a device a recurrent layer is an operator; on none it is thousands, one for each step.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return (_on_fakes,) if recurrent else (_on_meta, _on_fakes)


def _on_meta(model: nn.Module, inputs: Inputs, how: Pass, around: Surroundings) -> Recording:
    return _run(model, inputs, how, around, lambda t, device=None: meta_like(t), MetaRecorder())


def _on_fakes(model: nn.Module, inputs: Inputs, how: Pass, around: Surroundings) -> Recording:
    def copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """What lives on meta is put on the CPU."""
        device = device or tensor.device
        device = torch.device("cpu") if device.type == "meta" else device
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )

    with FakeTensorMode(allow_non_fake_inputs=True), quiet_fakes():
        return _run(model, inputs, how, around, copy, Recorder({}))


def _on_numbers(model: nn.Module, inputs: Inputs, how: Pass, around: Surroundings) -> Recording:
    def copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """A copy that the pass may write to; an input that is on meta gets random numbers."""
        if tensor.is_meta:
            return torch.rand(tensor.shape).to(device or "cpu", tensor.dtype)
        return tensor.detach().to(device or tensor.device, copy=True)

    return _run(model, inputs, how, around, copy, NumberRecorder())


def _run(
    model: nn.Module,
    inputs: Inputs,
    how: Pass,
    around: Surroundings,
    copy: Callable[..., Tensor],
    recorder: Recorder,
) -> Recording:
    """Run a model, or its copy, on copies of its tensors and of the inputs."""
    state, originals = {}, {}
    for name, param in model.named_parameters():
        state[name] = originals[id(param)] = recorder.given(copy(param), param=name)
    for name, buffer in model.named_buffers():
        state[name] = originals[id(buffer)] = recorder.given(
            copy(buffer), number=single_number(buffer)
        )
    device = next((p.device for p in state.values()), torch.device("cpu"))
    args, kwargs = _pytree.tree_map_only(
        Tensor,
        lambda t: recorder.given(copy(t, device), is_input=True),
        (inputs.args, dict(inputs.kwargs)),
    )
    try:
        with (
            _ready(model, how, originals, state, recorder, around) as ready,
            torch.no_grad(),
            recorder.beside(device),
            recorder,
        ):
            return recorder.finish(ready(*args, **kwargs), ready)
    except BaseException:
        recorder.forget()
        raise
    finally:
        around.made(recorder.products)


@contextmanager
def _ready(
    model: nn.Module,
    how: Pass,
    originals: dict[int, Tensor],
    state: dict[str, Tensor],
    recorder: Recorder,
    around: Surroundings,
) -> Iterator[nn.Module]:
    """A copy of the model with other tensors, or the model itself with these for the while."""
    if not how.copied:
        around.before({type(module) for module in model.modules()})
        with _untouched(model), _swapped(model, state):
            set_modes(model, how.training, how.evaluated)
            yield model
        return
    try:
        copies = Copies(model, originals)
    except Exception as error:  # as for anything else of a user's that is called
        raise NotCopyable(f"no copy can be made: {error}") from error
    recorder.expect(set(originals), copies.constants)
    around.before(copies.code)
    around.shared(copies.shared)
    around.made(weakref.ref(module) for _, module in copies.modules)
    set_modes(copies.model, how.training, how.evaluated)
    _remove_hooks((module for _, module in copies.modules), user_hooks=not how.hooks)
    recorder.prepare(module for _, module in copies.modules)
    try:
        yield copies.model
    finally:
        copies.drop()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a pass on the model itself changes: attributes, and what they contain."""
    saved = Saved()
    for module in model.modules():
        saved.save(vars(module), depth=4)
    try:
        yield
    finally:
        saved.restore()


@contextmanager
def _swapped(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Other tensors in the place of a model's parameters and buffers, tied ones too."""
    named = (*model.named_parameters(), *model.named_buffers())
    new = {id(tensor): state[name] for name, tensor in named}
    tables: list[dict[str, Any]] = [
        table for module in model.modules() for table in (module._parameters, module._buffers)
    ]
    before = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: new.get(id(tensor)) for name, tensor in table.items()})
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


def _remove_hooks(modules: Iterable[nn.Module], user_hooks: bool) -> None:
    """Remove the hooks of a backward pass, and those that users have registered."""
    for module in modules:
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
        for hooks in (module._forward_hooks, module._forward_pre_hooks) if user_hooks else ():
            for key in [key for key, hook in hooks.items() if _is_user_hook(hook)]:
                del hooks[key]


def has_user_hooks(model: nn.Module) -> bool:
    """Whether a module has a hook that is not one of torch's own (weight norm, pruning)."""
    return any(
        _is_user_hook(hook)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def _is_user_hook(hook: Any) -> bool:
    """Whether a hook is defined outside of torch."""
    name = getattr(hook, "__module__", None) or type(hook).__module__
    return name.partition(".")[0] != "torch"
