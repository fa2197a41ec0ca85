"""Building a module again from the arguments that it keeps."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghn_init.weights.places import Place, held_tensors

_UNKNOWN = object()
"""In the place of an argument that a module does not keep."""

_UNIMPORTANT = {
    "training",
    "num_classes",
    "grad_checkpointing",
    "gradient_checkpointing",
    "_is_hf_initialized",
}
"""Settings that are changed after a model is built, without effect on its initialization."""


def built_again(module: nn.Module, wanted: Mapping[Place, Place]) -> dict[Place, Tensor]:
    """Values from an equal module, built on the CPU; empty where it cannot be built."""
    for build, exactly in _builders(module):
        with contextlib.suppress(Exception), _OnCPU():  # whatever somebody's __init__ raises
            twin = build()
            if not exactly or _alike(module, twin):
                found = {place: _taken(module, twin, inner) for place, inner in wanted.items()}
                return {place: tensor for place, tensor in found.items() if tensor is not None}
    return {}


def _taken(module: nn.Module, twin: nn.Module, place: Place) -> Tensor | None:
    """The twin's tensor, if it is of the same size, in a module of the same kind and settings."""
    old, new = place.find(module), place.find(twin)
    if old is None or new is None or new.is_meta or old.shape != new.shape:
        return None
    same = _same_settings(*(m.get_submodule(place.module) for m in (module, twin)))
    return new.detach() if same else None


def _builders(module: nn.Module) -> Iterator[tuple[Callable[[], nn.Module], bool]]:
    """Ways to build a module again, and whether only an equal one is trusted.

    Of a library's model that was changed after it was built (another head, usually), what is still
    the same is taken.
    """
    kind = type(module)
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("architecture"):
        create = importlib.import_module("timm").create_model
        arguments = {"num_classes": getattr(module, "num_classes", None), "pretrained_cfg": config}
        arguments |= getattr(module, "_model_args", {})
        yield functools.partial(create, config["architecture"], **arguments), False
    if any(c.__module__ == "transformers.modeling_utils" for c in kind.__mro__):
        yield lambda: kind(copy.deepcopy(module.config)), False
    if kind.__module__.startswith("torchvision.models."):
        yield from ((build, True) for build in _torchvision_builders(module))
    if (kept := _kept_arguments(module)) is not None:
        yield functools.partial(kind, *kept[0], **kept[1]), True


def _torchvision_builders(model: nn.Module) -> Iterator[Callable[[], nn.Module]]:
    """The builders of torchvision that make the same model, tried on meta."""
    models: Any = importlib.import_module("torchvision.models")
    classes = list(model.parameters())[-1].shape[0]
    for name in models.list_models():
        builder = models.get_model_builder(name)
        if builder.__module__ != type(model).__module__:
            continue
        keywords = {"weights": None, "num_classes": classes}
        if "weights_backbone" in inspect.signature(builder).parameters:
            keywords["weights_backbone"] = None  # the default downloads them
        build = functools.partial(builder, **keywords)
        same = False
        with contextlib.suppress(Exception), torch.device("meta"):
            same = _alike(model, build())
        if same:
            yield build


def _kept_arguments(module: nn.Module) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments of a module's `__init__`, as far as its attributes of the same name tell.

    Where `__init__` hands on `*args` or `**kwargs`, the next class in line says what they are. What
    names a device or dtype is left at its default. None if any other argument is not kept: its
    default may not be what it was.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    handed_on = False  # by position only
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        kinds = {p.kind for p in parameters}
        some = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & kinds
        handed_on |= some == {inspect.Parameter.VAR_POSITIONAL}
        for p in parameters:
            if p.kind in some or p.name in kwargs or _names_a_device(p):
                continue
            value = _kept_argument(module, p)
            if value is _UNKNOWN:
                return None
            if p.kind == p.POSITIONAL_ONLY or (handed_on and p.kind != p.KEYWORD_ONLY):
                args.append(value)
            else:
                kwargs[p.name] = value
        if not some:
            break
    return args, kwargs


def _kept_argument(module: nn.Module, parameter: inspect.Parameter) -> Any:
    """The attribute that is named as an argument; of a `bias=True`, whether there is one."""
    for name in (parameter.name, f"_{parameter.name}"):
        value = vars(module).get(name, _UNKNOWN)
        if value is not _UNKNOWN and not isinstance(value, (Tensor, nn.Module)):
            return copy.deepcopy(value)
        for members in (module._parameters, module._buffers, module._modules):
            if name in members and isinstance(parameter.default, bool):
                return members[name] is not None
    return _UNKNOWN


def _names_a_device(parameter: inspect.Parameter) -> bool:
    """Whether an optional argument says where or how exactly, but not what."""
    default = parameter.default
    if isinstance(default, str):
        with contextlib.suppress(RuntimeError):
            default = torch.device(default)
    optional = default is not parameter.empty
    return isinstance(default, (torch.device, torch.dtype)) or (
        optional and parameter.name in ("device", "dtype")
    )


class _OnCPU(TorchFunctionMode):
    """What is made on meta by name is made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        placed = {k: _off_meta(v) for k, v in (kwargs or {}).items()}
        return func(*map(_off_meta, args), **placed)


def _off_meta(value: Any) -> Any:
    is_meta = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "meta"
    return torch.device("cpu") if is_meta else value


def _alike(module: nn.Module, twin: nn.Module) -> bool:
    """Whether two models have the same modules, with the same settings and sizes of tensors."""
    modules, others = dict(module.named_modules()), dict(twin.named_modules())
    return modules.keys() == others.keys() and all(
        _same_settings(one, others[name]) and _sizes(one) == _sizes(others[name])
        for name, one in modules.items()
    )


def _sizes(module: nn.Module) -> dict[tuple[Hashable, ...], torch.Size]:
    return {keys: tensor.shape for keys, tensor in held_tensors(vars(module))}


def _same_settings(module: nn.Module, twin: nn.Module) -> bool:
    """Whether two modules are of one class, and equal in their numbers, words and switches."""
    return type(module) is type(twin) and _settings(module) == _settings(twin)


def _settings(module: nn.Module) -> dict[str, Any]:
    plain = (bool, int, float, str, torch.dtype, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _UNIMPORTANT
        and all(
            isinstance(item, plain)
            for item in (value if isinstance(value, (tuple, list)) else (value,))
        )
    }
