"""Model -> torch.fx graph of ATen operators, without arithmetic and without touching the model.

The model runs once on meta tensors (sizes, no storage) while a dispatch mode writes every ATen
operator into a `torch.fx.Graph`. This works on whatever runs eagerly, as `make_fx` does; recording
the calls directly instead of through proxies, and on meta tensors instead of fake ones, is what
makes it many times faster than `make_fx` or `torch.export`. Meta tensors are on no device: a model
that insists on one is run on fake tensors, which are meta tensors that claim to be somewhere.

Where the forward pass asks for numbers (how many boxes a detector keeps, say), neither can answer;
the same recorder then watches a pass on real tensors, in evaluation mode.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode, fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ghn_init.errors import GHNInitError
from ghn_init.graph.isolation import (
    isolated_rng,
    plain_attention,
    plain_modes,
    quiet_fakes,
    untouched,
)


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
    """The forward pass depends on numbers that meta and fake tensors do not have."""


def record(model: nn.Module, inputs: Inputs, training: bool = True, fake: bool = True) -> fx.Graph:
    """Record one forward pass as a graph of ATen operators.

    Placeholders carry `meta["param"]` (the dotted name, for parameters), `meta["input"]` (True for
    the model's inputs) or neither (buffers and constants). Operators carry `meta["name"]`
    (`aten::linear`), and all that make one tensor `meta["val"]`, a tensor without storage. The
    graph's output node holds every tensor that the model returned.

    Arguments:
        model: any module that runs eagerly. It is left exactly as it was.
        inputs: example inputs.
        training: the mode to run in, whatever mode the model is in.
        fake: run without numbers; else on real tensors, which takes the time of a forward pass.

    Raises:
        NeedsNumbers: if the model cannot run without numbers.
        GHNInitError: if the model does not run on the inputs.
    """
    error: Exception
    for run in _passes(model) if fake else (_on_numbers,):
        try:
            with untouched(model, training), isolated_rng(), plain_attention(), plain_modes():
                return run(model, inputs)
        except Exception as caught:  # whatever a user's forward raises
            error = caught
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    kind = NeedsNumbers if fake and isinstance(error, _NUMBERLESS) else GHNInitError
    raise kind(
        f"{type(model).__name__} does not run on the example input ({inputs}): {reason}. "
        "Pass example_inputs=, a tensor (or a tuple, or a dict of keyword arguments) that "
        "the model's forward accepts."
    ) from error


_NUMBERLESS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
)


# -- three ways to run a model


def _passes(model: nn.Module) -> tuple[Callable[[nn.Module, Inputs], fx.Graph], ...]:
    """Ways to run without numbers, to be tried in turn."""
    # On a device a recurrent layer is an operator; on none it is thousands, one for each step.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return (_on_fakes,) if recurrent else (_on_meta, _on_fakes)


def _on_meta(model: nn.Module, inputs: Inputs) -> fx.Graph:
    return _run(model, inputs, lambda tensor, device=None: _meta_like(tensor), _MetaRecorder({}))


def _on_fakes(model: nn.Module, inputs: Inputs) -> fx.Graph:
    def copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """What lives on meta is put on the CPU."""
        device = device or tensor.device
        device = torch.device("cpu") if device.type == "meta" else device
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )

    with FakeTensorMode(allow_non_fake_inputs=True), quiet_fakes():
        return _run(model, inputs, copy, _Recorder({}))


def _on_numbers(model: nn.Module, inputs: Inputs) -> fx.Graph:
    def copy(tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """A copy that the pass may write to; an input that is on meta gets random numbers."""
        if tensor.is_meta:
            return torch.rand(tensor.shape).to(device or "cpu", tensor.dtype)
        return tensor.detach().to(device or tensor.device, copy=True)

    # Activations have their memory here: they are not kept.
    return _run(model, inputs, copy, _Recorder(WeakIdKeyDictionary()))


def _run(
    model: nn.Module, inputs: Inputs, copy: Callable[..., Tensor], recorder: _Recorder
) -> fx.Graph:
    """Run the model on copies of its state and of the inputs."""
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
    with torch.no_grad(), recorder.beside(device), recorder:
        output = torch.func.functional_call(model, state, args, kwargs)
    return recorder.finish(output)


# -- the recorder


class _Schema:
    """What matters of an operator's schema."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.name: str = schema.name
        self.is_mutable: bool = schema.is_mutable
        self.takes_device = any(a.name == "device" for a in schema.arguments)
        self.written = [
            (i, a.name)
            for i, a in enumerate(schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        fresh = all(r.alias_info is None for r in schema.returns)
        tensors = any("Tensor" in str(r.type) for r in schema.returns)
        self.makes_tensors = fresh and not self.is_mutable and tensors
        self.in_place = (
            not fresh and len(schema.returns) == 1 and [i for i, _ in self.written] == [0]
        )


_schema = functools.cache(_Schema)


class _Recorder(TorchDispatchMode):
    """Writes each dispatched ATen operator into an fx graph.

    Arguments:
        made: an empty mapping by identity, which tells what made a tensor.
    """

    def __init__(self, made: MutableMapping[Tensor, fx.Node]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self._made = made
        self._order: dict[fx.Node, int] = {}
        self._last_write: dict[int, fx.Node] = {}

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a forward makes without naming a device is to meet the parameters on theirs."""
        return device

    def placeholder(self, tensor: Tensor, **meta: Any) -> Tensor:
        """Add a tensor that was there before."""
        self._add(self.graph.placeholder(f"arg{len(self._order)}"), tensor, meta)
        return tensor

    def finish(self, output: Any) -> fx.Graph:
        """The graph, with what the model returned."""
        found: list[Tensor] = []
        _collect_tensors(output, found, set())
        self.graph.output(tuple(self._made_by(t) for t in found))
        return self.graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = _schema(func)
        out = self._call(func, schema, args, kwargs)
        if not isinstance(out, (Tensor, tuple, list)) and not schema.is_mutable:
            return out  # a question about a tensor (its device, its size), no operator of the graph
        read = _map(self._made_by, Tensor, args)
        read_kwargs = {name: _map(self._made_by, Tensor, value) for name, value in kwargs.items()}
        node = self.graph.call_function(func, read, read_kwargs)
        self._add(node, out, {"name": schema.name})
        if isinstance(out, (tuple, list)):
            for i, item in enumerate(out):
                if isinstance(item, Tensor):
                    self._add(self.graph.call_function(operator.getitem, (node, i)), item, {})
        for i, name in schema.written:
            self._write(args[i] if i < len(args) else kwargs.get(name), node)
        return out

    def _call(self, func: Any, schema: _Schema, args: tuple[Any, ...], kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _made_by(self, tensor: Tensor) -> fx.Node:
        """The node that made a tensor, or wrote it last."""
        node = self._made.get(tensor)
        if node is None:  # a constant that the model holds or makes outside of its buffers
            self.placeholder(tensor)
            return self._made[tensor]
        write = self._last_write.get(_storage(tensor)) if self._last_write else None
        if write is None or self._order[write] <= self._order[node]:
            return node
        # Another view of this storage was written after `tensor` was made: it sees both.
        return self._add(self.graph.call_function(written, (node, write)), tensor, {})

    def _add(self, node: fx.Node, made: Any, meta: Mapping[str, Any]) -> fx.Node:
        node.meta.update(meta)
        self._order[node] = len(self._order)
        if isinstance(made, Tensor):
            node.meta["val"] = self._without_storage(made)
            self._made[made] = node
        return node

    def _write(self, target: Any, node: fx.Node) -> None:
        for tensor in target if isinstance(target, (tuple, list)) else (target,):
            if isinstance(tensor, Tensor):
                self._made[tensor] = node
                self._last_write[_storage(tensor)] = node

    def _without_storage(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, fake_tensor.FakeTensor) else _meta_like(tensor)


def written(before: Any, write: Any) -> Any:
    """Graph marker: the value of a view after an in-place write through another view."""
    return before


class _Size(NamedTuple):
    """All that an operator knows of a meta tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Size:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _MetaRecorder(_Recorder):
    """Runs the operators on meta tensors, whatever device was meant.

    Which sizes an operator makes of which is remembered: torch finds many of them out in Python,
    in a hundred times the time, and the layers of a model, and of models, are much alike.
    """

    _known: ClassVar[dict[Hashable, Any]] = {}
    _MOST_KNOWN = 1 << 14

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext()  # all is run on meta anyway

    def _call(self, func: Any, schema: _Schema, args: tuple[Any, ...], kwargs: Any) -> Any:
        key = None
        if schema.makes_tensors or schema.in_place:
            key = func, _sizes(args), _sizes(tuple(kwargs.items()))
            if (known := self._known.get(key)) is not None:
                return _to_meta(args[0]) if schema.in_place else _map(_Size.tensor, _Size, known)
        if schema.takes_device:
            kwargs = {**kwargs, "device": torch.device("meta")}
        out = func(*_to_meta(args), **{name: _to_meta(value) for name, value in kwargs.items()})
        sizes = _map(_Size.of, Tensor, out)
        if key is not None and not (schema.in_place and sizes != key[1][0]):
            if len(self._known) == self._MOST_KNOWN:
                self._known.clear()
            self._known[key] = sizes
        return out

    def _without_storage(self, tensor: Tensor) -> Tensor:
        return tensor


def _sizes(value: Any) -> Any:
    """A value with sizes in the place of tensors; numbers beside their type, as 1 equals 1.0."""
    if isinstance(value, Tensor):
        return _Size.of(value)
    if isinstance(value, (tuple, list)):
        return tuple([_sizes(item) for item in value])
    return (type(value), value) if isinstance(value, (int, float, complex)) else value


def _to_meta(value: Any) -> Any:
    """A value with tensors on meta in the place of others."""
    return _map(lambda tensor: tensor if tensor.is_meta else _meta_like(tensor), Tensor, value)


def _meta_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _map(function: Callable[[Any], Any], kind: type, value: Any) -> Any:
    """Apply a function to what is of a kind in nested tuples and lists."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_map(function, kind, item) for item in value])
    return value


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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
