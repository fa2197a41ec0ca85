"""A model's state dict as safetensors files, each tensor of which is written when it is there."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_folder, atomic_path, check_safetensors_name
from ghn_init.loading.writing import SafetensorsFile, Sizes, is_finite
from ghn_init.names import abridged
from ghn_init.progress import Progress

_PIECE = 2**22
"""Numbers that are converted and written at a time."""

_PATTERN = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"
_NAMES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|config\.json")


@dataclass(frozen=True)
class Target:
    """Where and how a state dict is to be written.

    Arguments:
        path: a file, whose name ends in `.safetensors`, or else a folder. The folder has
            `model.safetensors`, or several files and `model.safetensors.index.json`, which says
            where each tensor is, as `huggingface_hub` and transformers read them; and
            `config.json` if the model is one of transformers.
        dtype: what floating point numbers are rounded to. Default: they stay as they are.
        max_shard_size: of a file in the folder, in bytes or such as `"5GB"`, the default. Only a
            single tensor that is larger makes a larger one.

    Raises:
        GHNInitError: one of them cannot be; or the folder holds something else.
    """

    path: str | os.PathLike[str]
    dtype: torch.dtype | None = None
    max_shard_size: int | str | None = None

    def __post_init__(self) -> None:
        check_safetensors_name(self.path)
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise GHNInitError(
                f"dtype is {self.dtype!r}: give one of {', '.join(map(str, _DTYPES))}."
            )
        if self.max_shard_size is not None:
            if not self.is_folder:
                raise GHNInitError(
                    f"{os.fspath(self.path)!r} is one file, and max_shard_size is for several: "
                    "give a folder."
                )
            _check_size(self.max_shard_size)
        if self.is_folder:
            _check_ours(Path(self.path))

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and no file."""
        return not os.fspath(self.path).endswith(".safetensors")

    @contextlib.contextmanager
    def open(self) -> Iterator[StateFiles]:
        """Files that take the place of those that were there, once the block ends.

        See `atomic_path` and `atomic_folder(whole=True)`.

        Raises:
            GHNInitError: it cannot be written.
        """
        atomic = atomic_folder(self.path, whole=True) if self.is_folder else atomic_path(self.path)
        with atomic as place, StateFiles(self, place) as files:
            yield files


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class StateFiles:
    """The files of a state dict while they are written.

    Of tensors that share a storage the one that is all of it is written, and the metadata name it
    for the others, as with `safetensors.torch.save_model`. What the format cannot hold is left out:
    extra state, sparse tensors, subclasses that store numbers in their own way.

    Arguments:
        target: what is to be written.
        place: where it is written to.
    """

    def __init__(self, target: Target, place: Path) -> None:
        self._target, self._place = target, place
        self._files: dict[str, SafetensorsFile] = {}  # by the names of tensors
        self._open = contextlib.ExitStack()
        self._others: Mapping[str, str] = {}
        self._sizes: Sizes = {}
        self.missing: tuple[str, ...] = ()
        """What the format cannot hold."""

    def begin(self, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Make the files, without values.

        Arguments:
            state: the state dict; of its tensors only dtypes, sizes and storages count.
            metadata: text, for each file.

        Raises:
            GHNInitError: safetensors has no such type of numbers.
            OSError: there is no room.
        """
        tensors, self._others = dense(state), shared(state)
        self.missing = tuple(name for name in state if name not in tensors)
        stored = {name: tensor for name, tensor in tensors.items() if name not in self._others}
        self._sizes = {
            name: (self._target.dtype if self._target.dtype and tensor.is_floating_point()
                   else tensor.dtype, tuple(tensor.shape))
            for name, tensor in stored.items()
        }  # fmt: skip
        self._check_room(sum(map(_bytes, self._sizes.values())))
        if not self._target.is_folder:
            self._make(self._place, self._sizes, metadata)
            return
        split = _split(self._sizes, self._target.max_shard_size or "5GB")
        for file, names in split.filename_to_tensors.items():
            self._make(self._place / file, {n: self._sizes[n] for n in names}, metadata)
        if split.is_sharded:
            index = {
                "metadata": {**split.metadata, **self._others, **metadata},
                "weight_map": split.tensor_to_filename,
            }
            (self._place / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def add_config(self, model: nn.Module) -> None:
        """Write the `config.json` of a model of transformers, beside files in a folder."""
        config = getattr(model, "config", None)
        if self._target.is_folder and callable(save := getattr(config, "save_pretrained", None)):
            save(self._place)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, on any device; of tied ones the first that comes."""
        stored = self._others.get(name, name)
        if (file := self._files.pop(stored, None)) is not None:
            file.put(stored, self._pieces(stored, tensor))

    def put_rest(self, state: Mapping[str, Any], silent: bool = True) -> None:
        """Write what has not been written yet; if it takes long, with a progress bar."""
        with Progress(len(self._files), "tensor", silent=silent) as progress:
            for name in list(self._files):
                self.put(name, state[name])
                progress.step()

    def __enter__(self) -> StateFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._place.parent).free
        if needed > free:
            reason = f"it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            raise OSError(errno.ENOSPC, reason)

    def _make(self, path: Path, sizes: Sizes, metadata: Mapping[str, str]) -> None:
        others = {name: first for name, first in self._others.items() if first in sizes}
        file = self._open.enter_context(SafetensorsFile(path, sizes, {**others, **metadata}))
        self._files |= dict.fromkeys(sizes, file)

    def _pieces(self, name: str, tensor: Tensor) -> Iterator[Tensor]:
        dtype = self._sizes[name][0]
        for piece in tensor.detach().reshape(-1).split(_PIECE):
            # A copy: what a large tensor has forgotten is only there once an operator reads it.
            rounded = piece.to("cpu", dtype, copy=True)
            if rounded.dtype != piece.dtype and is_finite(piece) and not is_finite(rounded):
                raise GHNInitError(f"tensor {name!r} has numbers too large for {dtype}.")
            yield rounded


def dense(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict that a file can hold."""
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and _is_dense(t)}


def _is_dense(tensor: Tensor) -> bool:
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and tensor.layout == torch.strided and not tensor.is_quantized


def shared(state: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors that another one stands for, which is all of their storage: its name."""
    tensors = dense(state)
    whole: dict[tuple[torch.device, int], str] = {}
    for name in sorted(tensors, reverse=True):
        storage = tensors[name].untyped_storage()
        if storage.nbytes() == tensors[name].numel() * tensors[name].element_size() > 0:
            whole[storage.device, storage.data_ptr()] = name
    stored = {n: whole.get(_storage(t), n) for n, t in tensors.items()}
    return {name: first for name, first in stored.items() if name != first}


def independent(model: nn.Module, state: Mapping[str, Any]) -> frozenset[str]:
    """Parameters whose values nothing else in a state dict depends on, but for equal ones.

    Arguments:
        model: the model.
        state: its state dict.
    """
    tensors, others = dense(state), shared(state)
    held = {_storage(t) for t in (*model.parameters(), *model.buffers()) if _is_dense(t)}
    if not {_storage(t) for t in tensors.values() if t.numel()} <= held:
        return frozenset()  # a hook has computed something
    stored: dict[tuple[torch.device, int], set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        stored[_storage(tensor)].add(others.get(name, name))
    found = set()
    for name, param in model.named_parameters():
        first = others.get(name, name)
        if name in tensors and stored.get(_storage(param)) == {first}:
            alike = (param, tensors[name], tensors[first])
            if len({(t.data_ptr(), t.shape, t.stride()) for t in alike}) == 1:
                found.add(name)
    return frozenset(found)


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


# -- folders


def _split(sizes: Sizes, most: int | str) -> Any:
    """How `huggingface_hub` splits a state dict."""
    from huggingface_hub import split_state_dict_into_shards_factory  # here: it is slow to import

    return split_state_dict_into_shards_factory(
        dict(sizes), get_storage_size=_bytes, filename_pattern=_PATTERN, max_shard_size=most
    )


def _bytes(size: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = size
    return math.prod(shape) * dtype.itemsize


def _check_size(size: int | str) -> None:
    try:
        _split({}, size)  # knows the units
        is_size = (float(size.strip()[:-2]) if isinstance(size, str) else size) > 0
    except (TypeError, ValueError):
        is_size = False
    if not is_size or isinstance(size, bool):
        raise GHNInitError(f"max_shard_size is {size!r}: give a size such as 5GB or 500MB.")


def _check_ours(folder: Path) -> None:
    """Refuse to replace a folder that is not from an export: all that is in it would be lost."""
    if not folder.is_dir():
        return
    files = sorted(folder.iterdir())
    others = [file.name for file in files if not _NAMES.fullmatch(file.name)]
    weights = [file for file in files if file.suffix == ".safetensors"]
    if files and not others and not (weights and _is_exported(weights[0])):
        others = [file.name for file in files]
    if others:
        raise GHNInitError(
            f"cannot write {str(folder)!r}: it holds {abridged(others)}, which is not from an "
            "export, and an export takes the place of all that is in a folder. Give another folder."
        )


def _is_exported(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            return "ghn_init_version" in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False
