"""Example inputs: what the user gave, or shapes that a vision model is likely to take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.recorder import Inputs

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

    The model's own word comes first (timm's `pretrained_cfg`, an `image_size`), then the usual
    sizes; the number of channels is read off the first layer.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    count = _required_arguments(model)
    shapes = list(dict.fromkeys((*_stated_shapes(model), *_usual_shapes(model))))
    for shape in shapes:
        image = torch.empty(_BATCH, *shape, dtype=dtype, device="meta")
        yield Inputs((image,) * count, {})
    for shape in shapes[:1]:  # detectors take a list of images
        image = torch.empty(*shape, dtype=dtype, device="meta")
        yield Inputs(([image] * _BATCH,), {})


def _required_arguments(model: nn.Module) -> int:
    """How many inputs `forward` asks for (optical flow takes two images)."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in positional and p.default is p.empty for p in parameters))


def _stated_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """(channels, height, width) that the model states itself.

    Its first layer knows better how many channels it was built for (timm's `in_chans`), unless
    patches are rearranged into channels in front of it.
    """
    channels = _first_layer(model)[1]
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if isinstance(config, Mapping) and config.get("input_size"):
            stated, *size = config["input_size"]
            if channels is not None and channels <= stated:
                yield (channels, *size)
            yield (stated, *size)
            if channels is not None:
                yield (channels, *size)
    size = getattr(model, "image_size", None)
    if isinstance(size, int):
        yield (channels or 3, size, size)


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
