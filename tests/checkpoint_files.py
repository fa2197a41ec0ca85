"""Small seeded hypernetworks, and files of them in every layout that checkpoints come in."""

from __future__ import annotations

import argparse
import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping

import safetensors.torch
import torch

from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.loading.layouts import expected_shapes

State = dict[str, torch.Tensor]

GHN3 = GHNConfig("ghn3", 8, 2, 2, (4, 4, 2, 2), 10)
GHN2 = GHNConfig("ghn2", 8, 1, 1, (16, 16, 11, 11), 10)


def tiny_state(config: GHNConfig = GHN3, seed: int = 0) -> State:
    """A state dict with canonical names and random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(config)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def published(state: Mapping[str, torch.Tensor]) -> State:
    """The same with the decoder's first map as in published files, (outputs, positions) x d."""
    return {
        name: tensor.movedim(2, 0).flatten(0, 2) if name.startswith("decoder.fc.0.") else tensor
        for name, tensor in state.items()
    }


def as_safetensors(state: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(dict(state))


def as_joblib(state: Mapping[str, torch.Tensor], protocol: int = 4) -> bytes:
    """What joblib.dump writes for tensors: a plain pickle."""
    return pickle.dumps(OrderedDict(state), protocol)


def as_torch(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def as_torch_legacy(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def as_release(state: Mapping[str, torch.Tensor], **config: object) -> bytes:
    """The layout of the GHN-2 release and of trainers: 1x1 convolutions, and other things."""
    weights = OrderedDict(
        (name, tensor[..., None, None] if _is_convolution(name) else tensor)
        for name, tensor in published(state).items()
    )
    optimizer = {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    others = {"epoch": 300, "config": dict(config), "args": argparse.Namespace(lr=0.1)}
    return as_torch({"state_dict": weights, "optimizer": optimizer, **others})


def _is_convolution(name: str) -> bool:
    return name.startswith(("decoder.conv.", "decoder.class")) and name.endswith(".weight")


LAYOUTS: dict[str, Callable[[Mapping[str, torch.Tensor]], bytes]] = {
    "safetensors": as_safetensors,
    "published names": lambda state: as_safetensors(published(state)),
    "joblib": lambda state: as_joblib(published(state)),
    "torch": lambda state: as_torch(published(state)),
    "torch-legacy": lambda state: as_torch_legacy(published(state)),
    "release": as_release,
}


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name])
        for name in wanted
    )
