"""The header of a safetensors file, checked before anything is read.

The format: 8 bytes, the size of the header; the header, JSON, name -> dtype, shape and first and
last byte; the tensors, without gaps.

`safetensors.safe_open` is not used here. It takes a path, so that it might open another file than
the one that was checked; does not say where in the file a tensor lies; takes a header of 100 MB;
and takes a name that occurs twice. What has passed these checks is opened with it afterwards.

Nothing here needs torch, so that a damaged file is refused before torch is imported.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable, check_shape, file_size, read_exactly

MAX_HEADER = 1 << 22  # bytes; the header of the largest published GHN has 40,000

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "U64": 8, "U32": 4, "U16": 2,
}  # fmt: skip
"""Of a number, by the format's name of its type."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: the format's name of its type, and its first byte in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BYTES[self.kind]


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as one of safetensors: with the size of its header, below 16 MB."""
    return start[3:9] == b"\0\0\0\0\0{"


def read_entries(file: Readable) -> tuple[list[Entry], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata.

    Raises:
        GHNInitError: the header is no valid one, or the tensors that it lists do not fill the file
            exactly, without gaps or overlaps.
    """
    header, start = _parse_header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise GHNInitError("damaged: the metadata are not text")
    entries = [_parse_entry(name, entry, start) for name, entry in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.nbytes))
    position = start
    for entry in entries:
        if entry.start != position:
            raise GHNInitError(
                f"damaged: tensor {entry.name[:80]!r} overlaps another or leaves a gap"
            )
        position += entry.nbytes
    size = file_size(file)
    if position > size:
        raise GHNInitError(
            f"truncated: it should have {position:,} bytes and has {size:,}. Fetch or copy it again"
        )
    if position < size:
        raise GHNInitError("damaged: there is something behind the end of its data")
    return entries, metadata


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


def _parse_entry(name: str, entry: object, data: int) -> Entry:
    """One tensor; the data begin at byte `data`."""
    match entry:
        case {
            "dtype": str() as kind,
            "shape": [*sizes],
            "data_offsets": [int() as start, int() as end],
        } if kind in _BYTES and len(sizes) <= 8 and all(map(_is_count, (*sizes, start, end))):
            found = Entry(name, kind, tuple(sizes), data + start)
            check_shape(found.shape)
            if end - start != found.nbytes:
                raise GHNInitError(
                    f"damaged: tensor {name[:80]!r} has {end - start} bytes, which does not fit "
                    "its shape"
                )
            return found
    raise GHNInitError(f"damaged: the entry of tensor {name[:80]!r} makes no sense")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
