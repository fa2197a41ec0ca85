"""The header of a safetensors file, checked before anything is read.

The format: 8 bytes, the size of the header; the header, JSON, name -> dtype, shape and first and
last byte; the tensors, without gaps.

`safetensors.safe_open` is not used here. It takes a path, so that it might open another file than
the one that was checked; does not say where in the file a tensor lies; takes a header of 100 MB;
and takes a name that occurs twice. What has passed these checks is opened with it afterwards.
"""

from __future__ import annotations

import json
import math

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.stored import (
    Readable,
    Storage,
    StoredTensor,
    file_size,
    read_exactly,
    row_major,
)

MAX_HEADER = 1 << 22  # bytes; the header of the largest published GHN has 40,000

DTYPES = {
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
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}


def read_header(file: Readable) -> tuple[dict[str, StoredTensor], dict[str, str]]:
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


def _parse_header(file: Readable) -> tuple[dict[str, object], int]:
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
        } if kind in DTYPES and len(shape) <= 8 and all(map(_is_count, (*shape, start, end))):
            numel = math.prod(shape)
            storage = Storage(DTYPES[kind], numel, start)
            if end - start != storage.nbytes:
                raise GHNInitError(
                    f"damaged: tensor {name[:80]!r} has {end - start} bytes, which does not fit "
                    "its shape"
                )
            return storage, tuple(shape), end
    raise GHNInitError(f"damaged: the entry of tensor {name[:80]!r} makes no sense")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
