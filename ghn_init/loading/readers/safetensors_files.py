"""The safetensors format: a header that is checked before anything is read, and a streaming writer.

The format: 8 bytes, the size of the header; the header, JSON, name -> dtype, shape and first and
last byte; the tensors, without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.loading.readers.stored import (
    Storage,
    StoredTensor,
    file_size,
    read_exactly,
    row_major,
)

MAX_HEADER = 1 << 22  # bytes; the header of the largest published GHN has 40,000

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_header(file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file, none of them read, and its metadata.

    Raises:
        GHNInitError: the header is no valid one, or the tensors that it lists do not fill the file
            exactly, without gaps or overlaps.
    """
    header, start = _parse_header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise GHNInitError("damaged: the metadata are not text")
    tensors: dict[str, StoredTensor] = {}
    position = start
    entries = [(name, *_parse_entry(name, entry)) for name, entry in header.items()]
    for name, storage, shape, end in sorted(entries, key=lambda entry: (entry[1].start, entry[3])):
        storage.start += start
        if storage.start != position:
            raise GHNInitError(f"damaged: tensor {name[:80]!r} overlaps another or leaves a gap")
        position = start + end
        tensors[name] = StoredTensor(storage, 0, shape, row_major(shape))
    size = file_size(file)
    if position > size:
        raise GHNInitError(
            f"truncated: it should have {position:,} bytes and has {size:,}. Fetch or copy it again"
        )
    if position < size:
        raise GHNInitError("damaged: there is something behind the end of its data")
    return tensors, metadata


def _parse_header(file: BinaryIO) -> tuple[dict[str, object], int]:
    """The header as JSON, and where the data begin."""
    size = int.from_bytes(read_exactly(file, 0, 8), "little")
    if size > MAX_HEADER:
        raise GHNInitError("refused: the header is absurdly large for a checkpoint")
    try:
        text = read_exactly(file, 8, size).decode()
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise GHNInitError("damaged: the header is not valid JSON") from error
    if not isinstance(header, dict):
        raise GHNInitError("damaged: the header is no dictionary")
    return header, 8 + size


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _parse_entry(name: str, entry: object) -> tuple[Storage, tuple[int, ...], int]:
    """Storage (start counted from the data), shape and end of one tensor."""
    match entry:
        case {
            "dtype": str() as kind,
            "shape": [*shape],
            "data_offsets": [int() as start, int() as end],
        } if kind in _DTYPES and len(shape) <= 8 and all(map(_is_count, (*shape, start, end))):
            numel = math.prod(shape)
            storage = Storage(_DTYPES[kind], numel, start)
            if end - start != storage.nbytes:
                raise GHNInitError(
                    f"damaged: tensor {name[:80]!r} has {end - start} bytes, which does not fit "
                    "its shape"
                )
            return storage, tuple(shape), end
    raise GHNInitError(f"damaged: the entry of tensor {name[:80]!r} makes no sense")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def stream(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    file: BinaryIO,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Copies tensors that lie in `file` to the safetensors file `path`, a few MB at a time.

    Arguments:
        path: an existing file; it is overwritten.
        tensors: by name.
        file: where they lie.
        metadata: text.
        dtype: what floating point numbers are rounded to; None: as they are.

    Raises:
        GHNInitError: a tensor contains NaN or infinite numbers, or has them once it is rounded, or
            `file` ends too early.
        OSError: `path` cannot be written.
    """
    dtypes = {
        name: dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype
        for name, tensor in tensors.items()
    }
    # Large items first, as every safetensors writer does: so all of them are aligned.
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    with open(path, "r+b") as out:
        out.write(_header({n: (dtypes[n], tensors[n].shape) for n in order}, metadata))
        for name in order:
            for piece in tensors[name].pieces(file):
                if not is_finite(piece):
                    raise not_finite(name)
                rounded = piece.to(dtypes[name])
                if not is_finite(rounded):
                    raise GHNInitError(f"tensor {name!r} has numbers too large for {dtype}")
                out.write(_raw(rounded))


def _header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(piece: torch.Tensor) -> memoryview:
    """The bytes of a one-dimensional tensor."""
    return piece.contiguous().view(torch.uint8).numpy().data


def is_finite(piece: torch.Tensor) -> bool:
    return not piece.is_floating_point() or bool(torch.isfinite(piece).all())


def not_finite(name: str) -> GHNInitError:
    return GHNInitError(
        f"damaged: tensor {name[:80]!r} contains NaN or infinite numbers. Fetch or copy it again"
    )


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors that are in memory to a safetensors file, whole or not at all.

    Raises:
        GHNInitError: `path` cannot be written (see `atomic_path`), or the disk is full.
    """
    # A view keeps its whole storage alive, and safetensors refuses shared ones: copy those.
    plain = {name: _own(tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(plain, temporary, dict(metadata))
        except safetensors.SafetensorError as error:
            raise GHNInitError(f"cannot write {path}: {error}.") from error


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, row-major, in a storage of its own."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()
