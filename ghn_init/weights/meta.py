"""The values that a model has of its own, also where it is built on the meta device.

A tensor on meta has no values, and the model does not keep what its `__init__` would have put
there. What it would have on a real device comes from two sources. They are tried on the whole
model, then on its parts down to single layers, until every tensor has its values:

1. The module is built again, on the CPU, from the arguments that it keeps: timm's model arguments,
   a transformers configuration, the torchvision builder that makes the same model, or attributes
   named as the arguments of `__init__`. A module that then differs in any size, class or setting is
   not used. It comes first, as only `__init__` has all of the initialization.
2. The module initializes a copy of itself with the functions that are meant for it:
   `reset_parameters()` of every layer, then `init_weights()`. What they do not write is found by
   running them twice, on different memory.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.isolation import isolated_rng
from ghn_init.names import abridged
from ghn_init.weights.places import Place, meta_tensors, real_like
from ghn_init.weights.rebuilding import built_again

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that leave what they contain as it is."""

_FILLS = (0, 1)
"""Bytes of which memory consists before a module initializes itself; valid for bool, too."""


@dataclass(frozen=True)
class OwnValues:
    """The values that a model has or, where it is on meta, those of its own initialization.

    Arguments:
        parameters: by name, those that are known for sure.
        on_meta: for tensors on meta, their values on the CPU; of tied tensors, those of one.
        missing: tensors on meta whose values cannot be had.
        by_layer: those that only a part of the model gave. What the `__init__` of the whole does to
            them afterwards (zeros, say) is not known.
        model: the name of the model's class.
    """

    parameters: Mapping[str, Tensor]
    on_meta: Mapping[Place, Tensor]
    missing: tuple[Place, ...]
    by_layer: frozenset[Place]
    model: str

    def without(self, model: nn.Module, written: Collection[str]) -> OwnValues:
        """The values that a model needs when some of its parameters are written.

        Raises:
            GHNInitError: one of them cannot be had.
        """
        params = dict(model.named_parameters(remove_duplicate=False))
        ids = {id(params[name]) for name in written}
        for place in self.missing:
            if id(place.find(model)) not in ids:
                owner = type(model.get_submodule(place.module)).__name__
                raise GHNInitError(
                    f"{place} is on the meta device and not predicted, and its values cannot be "
                    f"had: {owner} does not keep the arguments that it was built with, and has no "
                    "reset_parameters() that fills it. Build the model on a real device, or give "
                    "it memory and values first."
                )
        needed = {p: v for p, v in self.on_meta.items() if id(p.find(model)) not in ids}
        return OwnValues({}, needed, (), self.by_layer & needed.keys(), self.model)

    def notes(self) -> tuple[str, ...]:
        """What a user should know about the values."""
        if not self.by_layer:
            return ()
        names = [str(place) for place in self.on_meta if place in self.by_layer]
        return (
            f"{abridged(names)}: on the meta device and not predicted, so initialized layer by "
            f"layer; what the __init__ of {self.model} does to layers after it has built them is "
            "missing",
        )

    def unseen(self, written: Collection[str]) -> tuple[str, ...]:
        """A note about parameters that were written and whose own values are not known."""
        names = [name for name in written if name not in self.parameters]
        if not names:
            return ()
        return (
            f"{abridged(names)}: predicted, also if the __init__ of {self.model} gives them values "
            "on purpose (zeros, an identity): it is on the meta device, and does not keep the "
            "arguments to build it again. On a real device such values are left",
        )


def own_values(model: nn.Module, seed: int, written: Collection[str] = ()) -> OwnValues:
    """A model's own values. The model is untouched.

    Arguments:
        model: any part of it may be on meta.
        seed: of the initialization. The global RNG is neither read nor changed.
        written: names of parameters whose values are not looked for.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    real = {name: p for name, p in model.named_parameters() if not p.is_meta}
    params = dict(model.named_parameters(remove_duplicate=False))
    known = {id(params[name]) for name in written}
    missing: dict[Place, Tensor] = {}
    for place, tensor in (meta_tensors(model) if is_on_meta(model) else {}).items():
        if id(tensor) not in known:
            known.add(id(tensor))
            missing[place] = tensor
    by_name = {place: names.get(id(tensor)) for place, tensor in missing.items()}
    search = _Search(missing)
    if missing:
        with isolated_rng(seed), torch.no_grad(), torch.device("cpu"):
            search.look_in(model, "", whole=True)
    sure = {
        name: value
        for place, value in search.values.items()
        if (name := by_name[place]) is not None and place not in search.by_layer
    }
    return OwnValues(
        real | sure,
        search.values,
        tuple(missing),
        frozenset(search.by_layer),
        type(model).__name__,
    )


def is_on_meta(model: nn.Module) -> bool:
    """Whether a parameter or buffer is: only then it is worth searching the model for others."""
    return any(
        tensor is not None and tensor.is_meta
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for tensor in held.values()
    )


class _Search:
    """Looks for the values of tensors, from the whole model down to its single layers.

    Arguments:
        missing: the tensors; those that are found are taken out.
    """

    def __init__(self, missing: dict[Place, Tensor]) -> None:
        self.values: dict[Place, Tensor] = {}
        self._missing = missing
        self.by_layer: set[Place] = set()  # what the model as a whole did not give

    def look_in(self, module: nn.Module, name: str, whole: bool) -> None:
        """Ask a module, and its children for what it cannot give.

        Arguments:
            module: any part of the model.
            name: its name.
            whole: whether nothing else initializes what it contains.
        """
        prefix = f"{name}." if name else ""
        inside = [p for p in self._missing if p.module == name or p.module.startswith(prefix)]
        for way in (built_again, _initialized_by_itself):
            found = way(module, {p: p.within(name) for p in inside}) if inside else {}
            self.values |= found
            if not whole:
                self.by_layer |= found.keys()
            for place in found:
                del self._missing[place]
                inside.remove(place)
        if inside:
            whole = whole and type(module) in _CONTAINERS
            for child, inner in module.named_children():
                self.look_in(inner, f"{prefix}{child}", whole)


# -- its own functions


def _initialized_by_itself(module: nn.Module, wanted: Mapping[Place, Place]) -> dict[Place, Tensor]:
    """Values that a module writes into a copy of itself.

    A module with `init_weights()` (or `_init_weights(module)`, as for `nn.Module.apply`) is taken
    to initialize all that it contains; another, what it holds itself.
    """
    whole = any(callable(getattr(module, name, None)) for name in ("init_weights", "_init_weights"))
    inside = {place: inner for place, inner in wanted.items() if whole or not inner.module}
    if not inside or not (whole or _resets(module)):
        return {}
    seed = int(torch.randint(2**31, ()))
    copies = []
    for fill in _FILLS:
        with contextlib.suppress(Exception), isolated_rng(seed):  # some cannot be copied
            copies.append(_copy_with_memory(module, fill))
            _initialize(copies[-1], whole)
    if len(copies) < len(_FILLS):
        return {}
    return {
        place: found[0].detach()
        for place, inner in inside.items()
        if (found := [tensor for twin in copies if (tensor := inner.find(twin)) is not None])
        and _equal_bits(found)
    }


def _resets(module: nn.Module) -> list[Callable[[], Any]]:
    """A module's functions that initialize what it holds itself (timm: buffers, too)."""
    names = ("reset_parameters", "_reset_parameters", "init_non_persistent_buffers")
    return [reset for name in names if callable(reset := getattr(module, name, None))]


def _initialize(module: nn.Module, whole: bool) -> None:
    """Initialize as `__init__` does: the layers first, then the model that they are part of."""
    for layer in reversed(list(module.modules()) if whole else [module]):
        for reset in _resets(layer):
            with contextlib.suppress(Exception):  # what it does not write is noticed
                reset()
    if callable(function := getattr(module, "init_weights", None)):
        function()
    elif callable(function := getattr(module, "_init_weights", None)):
        module.apply(function)


def _copy_with_memory(module: nn.Module, fill: int) -> nn.Module:
    """A copy off meta, which shares no memory with the module but the same among its tensors."""
    memory: dict[int, torch.UntypedStorage] = {}
    memo: dict[int, Any] = {}
    for tensor in meta_tensors(module).values():
        real = real_like(tensor, torch.device("cpu"), memory, fill)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(real, tensor.requires_grad) if is_parameter else real
    return copy.deepcopy(module, memo)


def _equal_bits(tensors: list[Tensor]) -> bool:
    """Whether the copies agree to the bit (NaN is NaN): then nothing is left of their memory."""
    if len(tensors) < len(_FILLS) or any(tensor.is_meta for tensor in tensors):
        return False
    one, other = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in tensors)
    return torch.equal(one, other)
