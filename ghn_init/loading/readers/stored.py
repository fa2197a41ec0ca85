"""Tensors that still lie in a file: where they are and how to read them, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable, brief, check_shape, read_exactly

_LONG_RUN = 1 << 12  # bytes for which a read of its own pays
CHUNK = 1 << 22  # bytes read at a time: large enough for the disk, small beside any checkpoint


@dataclass
class Storage:
    """`numel` numbers of one `dtype` in a file, from byte `start` on (little endian).

    `start` is -1 until it is known: some layouts name their storages before they place them.
    """

    dtype: torch.dtype
    numel: int
    start: int = -1

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A view of a `Storage`; `offset` and `stride` count elements, as in torch.

    Raises `GHNInitError` when it is made, if any of its elements lies outside of the storage or if
    it has more elements than the storage (an expanded view: few bytes that claim to be many).
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise GHNInitError("damaged: a tensor's sizes, strides or offset are no counts")
        if len(self.shape) != len(self.stride) or len(self.shape) > 8:
            raise GHNInitError("damaged: a tensor's sizes and strides do not go together")
        check_shape(self.shape)
        if self.numel > self.storage.numel or self.offset + self.extent > self.storage.numel:
            raise GHNInitError(
                f"damaged: a tensor claims the shape {brief(self.shape)} at offset "
                f"{brief((self.offset,))}, but its storage holds {self.storage.numel} numbers"
            )

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def extent(self) -> int:
        """Elements from the first to behind the last that the view touches; 0 if it is empty."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def start(self) -> int:
        """Byte position of the first element in the file."""
        return self.storage.start + self.offset * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        expected = row_major(self.shape)
        return self.numel == 0 or all(
            n == 1 or step == want
            for n, step, want in zip(self.shape, self.stride, expected, strict=True)
        )

    def select(self, axis: int, index: int) -> StoredTensor:
        """One entry of an axis."""
        offset = self.offset + index * self.stride[axis]
        shape, stride = list(self.shape), list(self.stride)
        del shape[axis], stride[axis]
        return StoredTensor(self.storage, offset, tuple(shape), tuple(stride))

    def pieces(self, file: Readable) -> Iterator[torch.Tensor]:
        """The elements in row-major order, as one-dimensional tensors of a few MB each.

        A view that is not contiguous comes by the entries of its first axis if they are made of
        longer runs, as in a map by kernel position; else in one piece.
        """
        if not self.is_contiguous:
            axis = self._axis_between_runs()
            if axis is None:
                whole = read_span(file, self.start, self.extent, self.dtype)
                yield whole.as_strided(self.shape, self.stride).flatten()
                return
            for entry in (self.select(0, i) for i in range(self.shape[0])):
                runs = [entry.select(axis, j).read(file) for j in range(entry.shape[axis])]
                yield torch.stack(runs, dim=axis).flatten()
            return
        step = CHUNK // self.dtype.itemsize
        for done in range(0, self.numel, step):
            count = min(step, self.numel - done)
            yield read_span(file, self.start + done * self.dtype.itemsize, count, self.dtype)

    def _axis_between_runs(self) -> int | None:
        """The axis of an entry of the first axis along which it falls into contiguous runs.

        None if there is none, or if the runs are so short that reading them one by one takes
        longer than reading everything between them.
        """
        if len(self.shape) < 2 or self.numel == 0:
            return None
        entry = self.select(0, 0)
        axis = max(range(len(entry.shape)), key=lambda a: entry.stride[a])
        run = entry.select(axis, 0)
        return axis if run.is_contiguous and run.nbytes >= _LONG_RUN else None

    def read(self, file: Readable) -> torch.Tensor:
        """The tensor, in memory."""
        parts = list(self.pieces(file))
        flat = torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of this shape."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def read_span(file: Readable, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` numbers from byte `start` of the file, as a tensor that owns its memory."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    buffer = bytearray(read_exactly(file, start, count * dtype.itemsize))
    return torch.frombuffer(buffer, dtype=dtype)
