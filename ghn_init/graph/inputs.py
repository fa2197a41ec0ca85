"""Example inputs: what the user gave, or shapes that a vision model is likely to take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError


@dataclass(frozen=True, eq=False)
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


_BATCH = 2
"""Two samples: batch norm in training mode refuses a single value per channel."""

_SIZES = (224, 299, 256, 384, 240, 192, 448, 512, 128, 96, 64, 32, 28)
"""Image sizes tried in turn where the model does not say which one it wants."""


def given_inputs(example_inputs: Any) -> Inputs:
    """A user's `example_inputs`: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        GHNInitError: for anything else.
    """
    if isinstance(example_inputs, Tensor):
        return Inputs((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, (tuple, list)):
        return Inputs(tuple(example_inputs), {})
    raise GHNInitError(
        f"example_inputs is a {type(example_inputs).__name__}: give a tensor, a tuple of "
        "positional arguments, or a dict of keyword arguments of the model's forward."
    )


def likely_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Inputs to try, most likely first, with a batch of two.

    What the model states comes first: its image size (`image_size`, `patch_embed.img_size`, a
    transformers `config`), timm's `pretrained_cfg`, the channels of its first layer. Then come
    the usual sizes, and at last three channels at the usual sizes, whatever the first layer is.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    shapes = (*_stated_shapes(model), *_usual_shapes(model), *((3, s, s) for s in _SIZES))
    shapes = tuple(dict.fromkeys(shapes))
    parameters = inspect.signature(model.forward).parameters
    for shape in shapes:
        image = torch.empty(_BATCH, *shape, dtype=dtype, device="meta")
        if "pixel_values" in parameters:  # transformers
            yield from _keyword_inputs(model, parameters, image)
        else:
            yield Inputs((image,) * _required_arguments(parameters), {})
    for shape in shapes[:1]:  # detectors take a list of images
        image = torch.empty(*shape, dtype=dtype, device="meta")
        yield Inputs(([image] * _BATCH,), {})


def _keyword_inputs(
    model: nn.Module, parameters: Mapping[str, inspect.Parameter], image: Tensor
) -> Iterator[Inputs]:
    """An image by its name, with words beside it where the model also has a text encoder."""
    words = {"input_ids": torch.zeros(_BATCH, 8, dtype=torch.long, device="meta")}
    with_text = getattr(getattr(model, "config", None), "text_config", None) is not None
    if "input_ids" in parameters and with_text:
        yield Inputs((), {"pixel_values": image, **words})
    yield Inputs((), {"pixel_values": image})


def _required_arguments(parameters: Mapping[str, inspect.Parameter]) -> int:
    """How many inputs `forward` asks for (optical flow takes two images)."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is p.empty for p in parameters.values()))


def _stated_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """(channels, height, width), or with frames for a video, that the model states itself.

    Its first layer knows better how many channels it was built for (timm's `in_chans`), unless
    patches are rearranged into channels in front of it.
    """
    first = _first_layer(model)[1]
    config = getattr(model, "config", None)
    frames, stated = getattr(config, "num_frames", None), getattr(config, "num_channels", None)
    if (shape := _timm_shape(model)) is not None:
        stated = shape[0]
    stated = stated if isinstance(stated, int) else None
    preferred = [first] if first and (stated is None or first <= stated) else []
    channels = [c for c in dict.fromkeys((*preferred, stated, first, 3)) if c]
    for height, width in dict.fromkeys(_stated_sizes(model)):
        for count in channels:
            if isinstance(frames, int):
                yield (frames, count, height, width)
                yield (count, frames, height, width)
            yield (count, height, width)


def _timm_shape(model: nn.Module) -> tuple[int, ...] | None:
    """The input size of timm's `pretrained_cfg`."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            return tuple(config["input_size"])
    return None


def _stated_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """(height, width) that a model was built for, or one of its parts.

    What a part states comes last: it may mean the size of feature maps.
    """
    patches = getattr(model, "patch_embed", None)
    stated = [getattr(model, "image_size", None), getattr(model, "img_size", None)]
    stated += [getattr(patches, "img_size", None), (_timm_shape(model) or ())[1:]]
    parts = _stated_by_parts(model)
    stated += [getattr(part.get("config"), "image_size", None) for part in parts]
    stated += [part.get(name) for part in parts for name in ("image_size", "img_size")]
    for size in (size for size in stated if size is not None):
        sides: list[Any] = list(size) if isinstance(size, (list, tuple)) else [size, size]
        if isinstance(size, Mapping):
            sides = [size.get("height"), size.get("width")]
        elif hasattr(size, "height"):
            sides = [getattr(size, name, None) for name in ("height", "width")]
        if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
            yield sides[0], sides[1]


_STATED = frozenset({"config", "image_size", "img_size"})


def _stated_by_parts(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes that may state a size, of each module that has one.

    Where there is none, `getattr` takes long to say so.
    """
    modules = list(model.modules())
    of_class = {kind: [n for n in _STATED if hasattr(kind, n)] for kind in set(map(type, modules))}
    named = [(m, {*of_class[type(m)], *(_STATED & vars(m).keys())}) for m in modules]
    return [{name: getattr(m, name, None) for name in names} for m, names in named if names]


def _usual_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    dimensions, width = _first_layer(model)
    channels = width or 3
    if dimensions == 0:  # a plain MLP
        yield (channels,)
    elif dimensions == 1:
        yield from ((channels, length) for length in (224, 1024, 16000))
    elif dimensions == 3:
        yield from ((channels, 16, size, size) for size in (112, 224, 64))
    else:
        yield from ((channels, size, size) for size in _SIZES)


def _first_layer(model: nn.Module) -> tuple[int, int | None]:
    """Spatial dimensions and input channels of the first layer; (2, None) if unclear."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.weight.dim() - 2, module.in_channels
        if isinstance(module, nn.Linear):
            is_mlp = not any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
            return (0, module.in_features) if is_mlp else (2, None)
    return 2, None
