"""Writes safetensors files tensor by tensor, from memory or from another file.

`safetensors.torch.save_file` takes tensors that are in memory, all at once, and copies them there.
The weights of a foreign checkpoint lie in a file of gigabytes, and an exported model may fill the
memory already. It also writes to a file of its own first, which a kill leaves behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable
from ghn_init.loading.readers.safetensors_files import DTYPES
from ghn_init.loading.readers.stored import StoredTensor

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
    _write(path, sizes, lambda name: [tensors[name].detach().cpu()], metadata)


def write_state(
    path: Path, state: Mapping[str, object], metadata: Mapping[str, str]
) -> tuple[str, ...]:
    """Writes a model's state dict to a safetensors file, as `safetensors.torch.save_model` does.

    Of tensors that share a storage, the one that is all of it is written, and the metadata name it
    for the others; `safetensors.torch.load_model` knows them by the model. What the format cannot
    hold is left out: extra state, sparse tensors, subclasses that store numbers in their own way.

    Arguments:
        path: as in `write`.
        state: by name.
        metadata: text.

    Returns: the names of what is left out.

    Raises:
        GHNInitError: as `write`.
        OSError: as `write`.
    """
    tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor) and _is_dense(t)}
    whole: dict[tuple[torch.device, int], str] = {}
    for name in sorted(tensors, reverse=True):
        storage = tensors[name].untyped_storage()
        if storage.nbytes() == tensors[name].numel() * tensors[name].element_size() > 0:
            whole[storage.device, storage.data_ptr()] = name
    kept = {n: whole.get((t.device, t.untyped_storage().data_ptr()), n) for n, t in tensors.items()}
    others = {name: first for name, first in kept.items() if name != first}
    write(path, {n: tensors[n] for n in tensors if n not in others}, {**others, **metadata})
    return tuple(name for name in state if name not in tensors)


def _is_dense(tensor: torch.Tensor) -> bool:
    plain = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    return plain and tensor.layout == torch.strided and not tensor.is_quantized


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
    _write(path, sizes, pieces, metadata)


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


def _write(
    path: Path,
    sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    pieces: Callable[[str], Iterable[torch.Tensor]],
    metadata: Mapping[str, str],
) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    # Large items first, as every safetensors writer does: so all of them are aligned.
    order = sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name))
    for name in order:
        dtype, shape = sizes[name]
        if dtype not in _NAMES:
            raise GHNInitError(f"tensor {name!r} is of {dtype}, which safetensors cannot store")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in pieces(name):
                out.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
