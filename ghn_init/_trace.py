"""Model -> torch.fx graph of ATen operators, without arithmetic and without touching the model.

The model runs once on fake tensors (shapes, no storage) while a dispatch mode writes every ATen
operator into a `torch.fx.Graph`. Fake tensors make this work on whatever runs eagerly, as
`make_fx` does; recording the calls directly instead of through proxies is what makes it
several times faster than `make_fx`, `torch.export` or a meta-device pass under either. One front
end therefore serves every model, and there is no second one that could disagree with it.

Where the forward pass asks for numbers (how many boxes a detector keeps, say), fake tensors cannot
answer; the same recorder then watches a pass on real ones, in evaluation mode.
"""

from __future__ import annotations

import contextlib
import operator
import random
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor, FakeTensorMode, fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ._errors import GHNInitError


@dataclass(frozen=True)
class Inputs:
    """Example inputs of a model: only their shapes, dtypes and devices matter.

    Arguments:
        args: positional arguments of `model.forward`.
        kwargs: keyword arguments of `model.forward`.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [_describe(a) for a in self.args]
        shown += [f"{k}={_describe(v)}" for k, v in self.kwargs.items()]
        return ", ".join(shown) or "no inputs"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


class NeedsNumbers(GHNInitError):
    """The forward pass depends on numbers that fake tensors do not have."""


def record(model: nn.Module, inputs: Inputs, training: bool = True, fake: bool = True) -> fx.Graph:
    """Record one forward pass as a graph of ATen operators.

    Placeholders carry `meta["param"]` (the dotted name, for parameters), `meta["input"]` (True for
    the model's inputs) or neither (buffers and constants); operators carry `meta["val"]`, the fake
    output. The graph's output node holds every tensor that the model returned.

    Arguments:
        model: any module that runs eagerly. It is left exactly as it was.
        inputs: example inputs.
        training: the mode to run in, whatever mode the model is in.
        fake: run on fake tensors; else on real ones, which takes the time of a forward pass.

    Raises:
        NeedsNumbers: if the model cannot run on fake tensors.
        GHNInitError: if the model does not run on the inputs.
    """
    try:
        with _untouched(model, training), _isolated_rng(), torch.no_grad(), _plain_attention():
            return _run(model, inputs, fake)
    except Exception as error:  # whatever a user's forward raises
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        kind = NeedsNumbers if fake and isinstance(error, _NUMBERLESS) else GHNInitError
        raise kind(
            f"{type(model).__name__} does not run on the example input ({inputs}): {reason}. "
            "Pass example_inputs=, a tensor (or a tuple, or a dict of keyword arguments) that "
            "the model's forward accepts."
        ) from error


def _run(model: nn.Module, inputs: Inputs, fake: bool) -> fx.Graph:
    copy = _fake_copy if fake else _real_copy
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext():
        recorder = _Recorder()
        state = {}
        for name, param in model.named_parameters():
            state[name] = recorder.placeholder(copy(param), param=name)
        for name, buffer in model.named_buffers():
            state[name] = recorder.placeholder(copy(buffer))
        device = next((p.device for p in state.values()), torch.device("cpu"))
        args, kwargs = torch.utils._pytree.tree_map_only(
            Tensor,
            lambda t: recorder.placeholder(copy(t, device), input=True),
            (inputs.args, dict(inputs.kwargs)),
        )
        # What a forward makes without naming a device is to meet the parameters on theirs.
        with torch.device(device), recorder:
            output = torch.func.functional_call(model, state, args, kwargs)
        return recorder.finish(output)


_NUMBERLESS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
)


def _fake_copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """A fake tensor of the same size, strides and dtype; what lives on meta is put on the CPU."""
    device = device or tensor.device
    if device.type == "meta":
        device = torch.device("cpu")
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)


def _real_copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """A copy that the pass may write to; an input that is on meta gets small random numbers."""
    if tensor.is_meta:
        return torch.rand(tensor.shape).to(device or "cpu", tensor.dtype)
    return tensor.detach().to(device or tensor.device, copy=True)


class _Recorder(TorchDispatchMode):
    """Writes each dispatched ATen operator into an fx graph."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._node: MutableMapping[Tensor, fx.Node] = WeakIdKeyDictionary()
        self._order: dict[fx.Node, int] = {}
        self._last_write: dict[int, fx.Node] = {}

    def placeholder(self, tensor: Tensor, **meta: Any) -> Tensor:
        node = self.graph.placeholder(f"arg{len(self._order)}")
        node.meta.update(meta)
        self._set(tensor, node)
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, (Tensor, tuple, list)) and not func._schema.is_mutable:
            return out  # a question about a tensor (its device, its size), no operator of the graph
        node_args, node_kwargs = fx.node.map_aggregate((args, kwargs), self._read)
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._register(out, node)
        if func._schema.is_mutable:
            self._mutate(func, args, kwargs, node)
        return out

    def finish(self, output: Any) -> fx.Graph:
        found: list[Tensor] = []
        _collect_tensors(output, found, set())
        self.graph.output(tuple(self._read(t) for t in found))
        return self.graph

    def _set(self, tensor: Tensor, node: fx.Node) -> None:
        # Fake tensors have no numbers to keep; of a real one only the shape is kept.
        node.meta["val"] = tensor if isinstance(tensor, FakeTensor) else tensor.to("meta")
        self._node[tensor] = node
        self._order[node] = len(self._order)

    def _register(self, out: Any, node: fx.Node) -> None:
        if isinstance(out, Tensor):
            self._set(out, node)
        elif isinstance(out, (tuple, list)):
            self._order[node] = len(self._order)
            for i, item in enumerate(out):
                if isinstance(item, Tensor):
                    self._set(item, self.graph.call_function(operator.getitem, (node, i)))

    def _read(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = self._node.get(value)
        if node is None:  # a constant that the model holds or makes outside of its buffers
            self.placeholder(value)
            return self._node[value]
        write = self._last_write.get(_storage(value)) if self._last_write else None
        if write is None or self._order[write] <= self._order[node]:
            return node
        # Another view of this storage was written after `value` was made: it sees both.
        merged = self.graph.call_function(written, (node, write))
        self._set(value, merged)
        return merged

    def _mutate(self, func: Any, args: tuple[Any, ...], kwargs: Any, node: fx.Node) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            target = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in target if isinstance(target, (tuple, list)) else (target,):
                if isinstance(tensor, Tensor):
                    self._order.setdefault(node, len(self._order))
                    self._node[tensor] = node
                    self._last_write[_storage(tensor)] = node


def written(before: Any, write: Any) -> Any:
    """Graph marker: the value of a view after an in-place write through another view."""
    return before


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _collect_tensors(value: Any, found: list[Tensor], seen: set[int]) -> None:
    """Every tensor in a model's output: containers, dataclasses, output objects."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            _collect_tensors(item, found, seen)
    elif isinstance(value, (tuple, list, set)):
        for item in value:
            _collect_tensors(item, found, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        for item in vars(value).values():
            _collect_tensors(item, found, seen)


@contextlib.contextmanager
def _untouched(model: nn.Module, training: bool) -> Iterator[None]:
    """Run modules in the given mode, and put back every attribute that the pass changed.

    Some models cache what they compute (masks, position tables) on themselves: a cache of fake
    tensors must not stay behind. `train()` is not called, as some modules override it.
    """
    modules = list(model.modules())
    saved = [
        (container, container.copy())
        for module in modules
        for container in (module.__dict__, *module.__dict__.values())
        if type(container) in (dict, list, set)
    ]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for container, content in saved:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)


@contextlib.contextmanager
def _isolated_rng() -> Iterator[None]:
    """Make the same random choices on every trace (some forwards flip coins), and restore."""
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(0)
            torch.random.default_generator.manual_seed(0)
            if numpy:
                numpy.random.seed(0)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its inference-only fused kernel, which hides the layers."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
