"""Writes safetensors files tensor by tensor, from memory or from another file.

`safetensors.torch.save_file` takes tensors that are in memory, all at once, and copies them there.
The weights of a foreign checkpoint lie in a file of gigabytes, and an exported model may fill the
memory already. It also writes to a file of its own first, which a kill leaves behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable
from ghn_init.loading.readers.safetensors_files import DTYPES
from ghn_init.loading.readers.stored import StoredTensor

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Sizes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Of each tensor the dtype and the shape."""


class SafetensorsFile:
    """A safetensors file that is written tensor by tensor, in any order.

    What is not written in the end is 0.

    Arguments:
        path: it is overwritten; `atomic_path` gives one that takes the place of another.
        sizes: of each tensor the dtype and the shape.
        metadata: text.

    Raises:
        GHNInitError: safetensors has no such type of numbers.
        OSError: `path` cannot be written.
    """

    def __init__(self, path: Path, sizes: Sizes, metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        starts, end = {}, 0
        # Large items first, as every safetensors writer does: so all of them are aligned.
        for name in sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name)):
            dtype, shape = sizes[name]
            if dtype not in _NAMES:
                raise GHNInitError(f"tensor {name!r} is of {dtype}, which safetensors cannot store")
            starts[name], end = end, end + math.prod(shape) * dtype.itemsize
            offsets = [starts[name], end]
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._starts = {name: 8 + len(text) + start for name, start in starts.items()}
        self._file = open(path, "wb")  # noqa: SIM115 (`__exit__` closes it)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(8 + len(text) + end)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, in the order of the file."""
        return tuple(self._starts)

    def put(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Write a tensor, which comes in pieces, one after the other."""
        self._file.seek(self._starts[name])
        for piece in pieces:
            self._file.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors that are in memory, on any device, to a safetensors file.

    Arguments:
        path: it is overwritten; `atomic_path` gives one that takes the place of another.
        tensors: by name.
        metadata: text.

    Raises:
        GHNInitError: safetensors has no such type of numbers.
        OSError: `path` cannot be written.
    """
    sizes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsFile(path, sizes, metadata) as file:
        for name in file.names:
            file.put(name, [tensors[name].detach().cpu()])


def copy(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    file: Readable,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Copies tensors that lie in a file to a safetensors file, a few MB at a time.

    Arguments:
        path: it is overwritten.
        tensors: by name.
        file: where they lie.
        metadata: text.
        dtype: what floating point numbers are rounded to; None: as they are.

    Raises:
        GHNInitError: a tensor contains NaN or infinite numbers, or has them once it is rounded, or
            `file` ends too early.
        OSError: `path` cannot be written.
    """

    def pieces(name: str) -> Iterable[torch.Tensor]:
        for piece in _finite_pieces(name, tensors[name], file):
            rounded = piece.to(sizes[name][0])
            if not is_finite(rounded):
                raise GHNInitError(f"tensor {name!r} has numbers too large for {dtype}")
            yield rounded

    sizes = {
        name: (dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype, tensor.shape)
        for name, tensor in tensors.items()
    }
    with SafetensorsFile(path, sizes, metadata) as file_:
        for name in file_.names:
            file_.put(name, pieces(name))


def check_finite(tensors: Mapping[str, StoredTensor], file: Readable) -> None:
    """Reads tensors that lie in a file, a few MB at a time.

    Raises:
        GHNInitError: there are NaN or infinite numbers among them.
    """
    for name, tensor in tensors.items():
        for _ in _finite_pieces(name, tensor, file):
            pass


def _finite_pieces(name: str, tensor: StoredTensor, file: Readable) -> Iterable[torch.Tensor]:
    for piece in tensor.pieces(file):
        if not is_finite(piece):
            raise GHNInitError(
                f"damaged: tensor {name[:80]!r} contains NaN or infinite numbers. Fetch or copy it "
                "again"
            )
        yield piece


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there are neither NaN nor infinite numbers in a tensor."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
