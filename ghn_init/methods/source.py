"""A trained model that values are taken from: what `source=` may be, and what methods see of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.tracing import trace
from ghn_init.loading.checkpoint import read_state_dict
from ghn_init.models import create_model

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Source:
    """What `source=` names, loaded.

    Arguments:
        name: for the report and for errors.
        tensors: parameters and buffers by name.
        model: whose they are; None where only a file of tensors is known.
    """

    name: str
    tensors: Mapping[str, Tensor]
    model: nn.Module | None = None

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, in float32 on the CPU."""
        return self.tensors[name].detach().to("cpu", torch.float32)

    def graph(self, example_inputs: Any = None) -> Graph:
        """The model's graph.

        Arguments:
            example_inputs: what the model that is initialized was traced with. It is tried first.

        Raises:
            GHNInitError: the model cannot be traced.
        """
        assert self.model is not None
        for inputs in () if example_inputs is None else (example_inputs,):
            with contextlib.suppress(GHNInitError):  # a relative may take images of another size
                return trace(self.model, inputs)
        try:
            return trace(self.model)
        except GHNInitError as error:
            raise GHNInitError(f"source {self.name} cannot be traced: {error}") from error


def open_source(source: Any) -> Source:
    """What `source=` names.

    Arguments:
        source: a trained model; the name of one, as in `create_model`, with its published weights,
            which timm and the others load from the Hub or their cache; or the file of a state
            dict, of safetensors or of `torch.save`. Nothing that a file says is run.

    Raises:
        GHNInitError: it is none of these, or the weights cannot be had.
    """
    if isinstance(source, nn.Module):
        return _of_model(source, source_name(source))
    if not isinstance(source, (str, os.PathLike)):
        raise GHNInitError(
            f"source is a {type(source).__name__}: give a trained model, the name of one, or the "
            "file of its state dict."
        )
    path = Path(source)
    if path.suffix in _SUFFIXES or path.is_file():
        return Source(source_name(source), _read(path))
    return _of_model(create_model(str(source), pretrained=True)[0], source_name(source))


def source_name(source: Any) -> str:
    """For reports: a model's class, a file's name without its folder, or the name itself."""
    if isinstance(source, nn.Module):
        return type(source).__name__
    path = Path(source)
    return path.name if path.suffix in _SUFFIXES else str(source)


def _of_model(model: nn.Module, name: str) -> Source:
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if any(tensor.is_meta for tensor in tensors.values()):
        raise GHNInitError(
            f"source {name} is on the meta device, where it has no values: load its weights first."
        )
    return Source(name, tensors, model)


def _read(path: Path) -> dict[str, Tensor]:
    """The floating-point tensors of a file."""
    try:
        tensors = read_state_dict(path)
    except GHNInitError as error:
        raise GHNInitError(f"source: {error}") from error
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
