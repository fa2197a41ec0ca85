"""The layouts that checkpoints come in, and the one that everything else works with.

Canonical is: safetensors, the names of the Hub files (the degree and distance embeddings at the
top level), linear maps two-dimensional, the decoder's first map by kernel position, a `GHNConfig`
that follows from the sizes of the tensors.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Defaults, GHNConfig
from ghn_init.hypernetwork.encoding import channel_table
from ghn_init.hypernetwork.ghn import without_weights
from ghn_init.loading.metadata import (
    HISTORY_KEYS,
    check_config,
    check_released_config,
    read_defaults,
    said_config,
)
from ghn_init.loading.readers.files import Readable, file_size, read_exactly
from ghn_init.loading.readers.headers import is_safetensors
from ghn_init.loading.readers.safetensors_files import read_safetensors
from ghn_init.loading.readers.stored import StoredTensor
from ghn_init.loading.readers.torch_files import (
    LEGACY_MAGIC,
    read_joblib,
    read_torch_legacy,
    read_torch_zip,
)
from ghn_init.loading.readers.unchanging import Stamp, stamp

_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COMPRESSED = (  # how files begin that joblib writes with compression: gzip, bz2, xz, lzma, zlib
    *(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x5d\0\0"),
    *(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
)
_TOP_LEVEL = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")
_LOW_RANK = "decoder.l2.weight"
_MOST = 1 << 31  # of a number that is said
_UNUSED = re.compile(
    r"(module\.)?(decoder\.(l1|seq\.1)|decoder_1d\.0|bias_class\.1)\.(weight|bias)"
)
"""Tensors of LoGAH's files that nothing is computed with, or that are there under another name."""


@dataclass(frozen=True)
class Contents:
    """What a file holds. The tensors still lie in it."""

    layout: str
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]  # of a safetensors file
    extras: dict[str, object]  # what a torch.save file holds besides the tensors


def read_contents(file: Readable) -> Contents:
    """Finds out the layout of a file and where its tensors are. No weight is read.

    Raises:
        GHNInitError: the layout is not known, or the file is damaged or malicious.
    """
    start = read_exactly(file, 0, min(16, file_size(file)))
    if is_safetensors(start):
        tensors, metadata = read_safetensors(file)
        return Contents("safetensors", tensors, metadata, {})
    if start.startswith(b"PK"):
        return _read_pickled("torch", read_torch_zip, file)
    if start.startswith(LEGACY_MAGIC):
        return _read_pickled("torch", read_torch_legacy, file)
    if start.startswith(b"\x80"):
        return _read_pickled("joblib", read_joblib, file)
    if re.match(rb"c[\w.]+\n", start):  # an old text pickle; to name what it asks for
        read_joblib(file)
    raise _unknown(start)


def _read_pickled(layout: str, read: Callable[[Readable], object], file: Readable) -> Contents:
    found = read(file)
    extras: dict[str, object] = {}
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        extras = {str(key): value for key, value in found.items() if key != "state_dict"}
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise GHNInitError("it is no checkpoint: it does not hold a dictionary of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise GHNInitError(f"it is no checkpoint: {str(name)[:80]!r} in it is not a tensor")
    if any(name.removeprefix("module.") == _LOW_RANK for name in found):
        found = {name: tensor for name, tensor in found.items() if not _UNUSED.fullmatch(name)}
    _check_total(found.values(), file)
    return Contents(layout, cast("dict[str, StoredTensor]", found), {}, extras)


def _check_total(tensors: Iterable[StoredTensor], file: Readable) -> None:
    """Stops a small file whose tensors share one storage from becoming a huge one, or a long read.

    What lies between the numbers of a view is read with them.
    """
    spans = (max(tensor.numel, tensor.extent) * tensor.dtype.itemsize for tensor in tensors)
    if sum(spans) > file_size(file):
        raise GHNInitError("refused: its tensors together are larger than the file")


def _unknown(start: bytes) -> GHNInitError:
    if start.lstrip()[:1] == b"<":
        return GHNInitError("it is a web page, not a checkpoint. Delete it and download the file")
    if start.startswith(_COMPRESSED):
        return GHNInitError(
            "it is compressed, as no published checkpoint is. Decompress it, or write it again "
            "without compression: joblib.dump(..., compress=0)"
        )
    if start.startswith(b"version https://"):
        return GHNInitError("it is a git-LFS pointer, not the file itself. Run `git lfs pull`")
    if not start:
        return GHNInitError("it is empty")
    return GHNInitError(
        f"it is in no known checkpoint layout (it begins with {start[:8].hex(' ')}). Known are "
        "safetensors, joblib pickles as on the Hub, and torch.save files"
    )


# Names and sizes.


@dataclass(frozen=True)
class Weights:
    """The weights of a hypernetwork: canonical names and shapes, still lying in their file."""

    layout: str
    tensors: dict[str, StoredTensor]
    config: GHNConfig
    defaults: Defaults
    in_place: bool  # whether the file itself is canonical and can be memory-mapped
    history: Mapping[str, str]  # what the metadata say of its training


def read_weights(file: Readable) -> Weights:
    """The hypernetwork that a file holds. No weight is read.

    Raises:
        GHNInitError: as `read_contents`; or the file is no GHN, tensors are missing, surplus, of
            the wrong shape or not floating point, the configuration in it contradicts them, or its
        defaults are none.
    """
    contents = read_contents(file)
    tensors = _rename(contents.tensors)
    said = said_config(contents.metadata, contents.extras)
    config = infer_config({name: tensor.shape for name, tensor in tensors.items()}, said)
    shapes = expected_shapes(config)
    tensors = {name: _in_shape(tensor, shapes.get(name)) for name, tensor in tensors.items()}
    check_state({name: (t.shape, t.dtype) for name, t in tensors.items()}, config)
    check_config(contents.metadata, config)
    check_released_config(contents.extras.get("config"), config)
    aligned = all(tensor.start % tensor.dtype.itemsize == 0 for tensor in tensors.values())
    in_place = contents.layout == "safetensors" and tensors == contents.tensors and aligned
    defaults = read_defaults(contents.metadata)
    history = {key: contents.metadata[key] for key in HISTORY_KEYS if key in contents.metadata}
    return Weights(contents.layout, tensors, config, defaults, in_place, history)


def _rename(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Canonical names: no `module.` of DistributedDataParallel, embeddings at the top level."""
    wrapped = all(name.startswith("module.") for name in tensors)
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("module.") if wrapped else name
        if short.startswith(tuple(f"gnn.0.{part}." for part in _TOP_LEVEL)):
            short = short.removeprefix("gnn.0.")
        if short in renamed:
            raise GHNInitError(f"damaged: tensor {short[:80]!r} is there twice")
        renamed[short] = tensor
    return renamed


def _in_shape(tensor: StoredTensor, shape: tuple[int, ...] | None) -> StoredTensor:
    """A tensor in its canonical shape, if it is in one of the published ones; else as it is."""
    if shape is None:
        return tensor
    if tensor.shape == (*shape, 1, 1):  # a linear map stored as a 1x1 convolution
        return replace(tensor, shape=shape, stride=tensor.stride[: len(shape)])
    if len(shape) >= 3 and tensor.shape == (math.prod(shape[:3]), *shape[3:]):
        return _by_position(tensor, *shape[:3])
    return tensor


def _by_position(tensor: StoredTensor, height: int, width: int, outputs: int) -> StoredTensor:
    """A published map to (output, row, column) as one to (row, column, output)."""
    step, *rest = tensor.stride
    return StoredTensor(
        tensor.storage,
        tensor.offset,
        (height, width, outputs, *tensor.shape[1:]),
        (width * step, step, height * width * step, *rest),
    )


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], said: Mapping[str, Any] | None = None
) -> GHNConfig:
    """The configuration that follows from the sizes of a state dict (canonical names).

    Arguments:
        shapes: of its tensors.
        said: what its file says of the configuration, for what no tensor of a low-rank decoder
            shows: the largest shape and the number of classes.

    Raises:
        GHNInitError: these are not the tensors of a GHN-3, GHN-2 or LoGAH, or too little is said.
    """
    hidden = _size(shapes, "embed.weight", 1)
    low_rank = _LOW_RANK in shapes
    sizes = _said_sizes(shapes, said or {}) if low_rank else _decoder_sizes(shapes, hidden)
    gated = any(name.startswith("gnn.gru.") for name in shapes)
    numbers = [re.match(r"gnn\.(\d{1,3})\.", name) for name in shapes]
    layers = max((int(number[1]) + 1 for number in numbers if number), default=0)
    if not gated and layers == 0:
        raise _no_ghn(shapes)
    attends = any(name.startswith("gnn.0.attn.") for name in shapes)
    # The papers' rule is 16 heads where d > 64, else 8; the bias of the edge term has one entry a
    # head, which also holds for hypernetworks of other sizes.
    heads = 1 if gated or not attends else _size(shapes, "gnn.0.attn.proj_e.2.weight", 0)
    try:
        return GHNConfig(
            arch="ghn2" if gated else "ghn3" if attends else "mlp",
            hidden_size=hidden,
            layers=1 if gated else layers,
            heads=heads,
            **sizes,
            final_layernorm="ln.weight" in shapes,
            virtual_edges=not gated or any(name.startswith("gnn.mlp_ve.") for name in shapes),
        )
    except GHNInitError as error:
        raise GHNInitError(f"damaged: its sizes are not those of any GHN: {error}") from error


def _decoder_sizes(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> dict[str, Any]:
    """The sizes that the tensors of the decoder of GHN-3 and GHN-2 show."""
    channels = math.isqrt(_size(shapes, "decoder.conv.2.weight", 0))
    first = shapes.get("decoder.fc.0.weight", ())
    maps = math.prod(first[:3]) if len(first) == 4 else _size(shapes, "decoder.fc.0.weight", 0)
    kernel = math.isqrt(maps // max(1, 4 * hidden))
    classes = _size(shapes, "decoder.class_layer_predictor.1.weight", 0)
    return {"max_shape": (channels, channels, kernel, kernel), "num_classes": classes}


def _said_sizes(shapes: Mapping[str, tuple[int, ...]], said: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a low-rank decoder: of its tensors, and what the file says."""
    if any(name.startswith("decoder_1d.") for name in shapes):
        raise GHNInitError(
            "its vectors have a decoder of their own (use_1d_decoder), which is not supported"
        )
    max_shape: Any = said.get("max_shape")
    classes: Any = said.get("num_classes")
    four = isinstance(max_shape, tuple | list) and len(max_shape) == 4
    numbers = [*max_shape, classes] if four else []
    if not numbers or not all(type(n) is int and 0 < n < _MOST for n in numbers):
        raise GHNInitError(
            "it is a LoGAH that does not say its largest shape and number of classes. Give the "
            "file that its training wrote, which has a `config` beside the `state_dict`"
        )
    if _size(shapes, "shape_enc.embed_channel.weight", 0) > len(channel_table(classes)) + 1:
        raise GHNInitError("it is a LoGAH of language models, whose layers ghn_init does not have")
    rows, rank = (_size(shapes, _LOW_RANK, axis) for axis in (0, 1))
    return {"max_shape": tuple(max_shape), "num_classes": classes, "rank": rank, "rows": rows}


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise _no_ghn(shapes)
    return shape[axis]


def _no_ghn(shapes: Mapping[str, tuple[int, ...]]) -> GHNInitError:
    return GHNInitError(
        f"it is no GHN-3, GHN-2 or LoGAH: it holds tensors like {_some(sorted(shapes))}. Give the "
        "checkpoint of a hypernetwork, not of a model"
    )


@functools.lru_cache(maxsize=8)
def expected_shapes(config: GHNConfig) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the state dict of a hypernetwork (canonical names)."""
    state = without_weights(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_state(
    state: Mapping[str, tuple[tuple[int, ...], torch.dtype]], config: GHNConfig
) -> None:
    """Compares names, shapes and types of a state dict with what the configuration calls for.

    Raises:
        GHNInitError: they differ; the message names the first few tensors concerned.
    """
    expected = expected_shapes(config)
    if missing := sorted(expected.keys() - state.keys()):
        raise GHNInitError(f"incomplete: it lacks {len(missing)} tensors: {_some(missing)}")
    if surplus := sorted(state.keys() - expected.keys()):
        raise GHNInitError(
            f"it holds {len(surplus)} tensors that a {config.arch} of its size has not: "
            f"{_some(surplus)}"
        )
    for name, shape in expected.items():
        found, dtype = state[name]
        if found != shape:
            raise GHNInitError(f"tensor {name!r} has the shape {found}, and should have {shape}")
        if dtype not in _FLOATS:
            raise GHNInitError(f"tensor {name!r} is of type {dtype}, not floating point")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def canonical(path: Path) -> tuple[Weights, Stamp] | None:
    """What a canonical file holds, and the marks of the file; None if it is not a whole one."""
    try:
        with open(path, "rb") as file:
            weights = read_weights(file)
            return (weights, stamp(file)) if weights.in_place else None
    except (OSError, GHNInitError):
        return None
