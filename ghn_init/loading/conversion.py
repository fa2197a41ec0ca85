"""Foreign checkpoints rewritten in the canonical layout, a few MB at a time."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path, check_safetensors_name
from ghn_init.hypernetwork.config import Defaults
from ghn_init.loading import cache
from ghn_init.loading.layouts import Weights, canonical, read_weights
from ghn_init.loading.locate import check_checksum, locate, opened
from ghn_init.loading.metadata import defaults_beside, own_metadata
from ghn_init.loading.readers.unchanging import Unchanging, expect_unchanged, settle, stamp
from ghn_init.loading.writing import copy

_STORED_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def convert(
    name_or_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    orth_start: int | float | None = None,
    norms: Collection[str] | None = None,
) -> None:
    """Writes a checkpoint of any known layout as a safetensors file, whole or not at all.

    The weights are copied a few MB at a time, never held in memory. The metadata of the result
    have the configuration, the defaults, what the original says of its training, and the name,
    revision and sha256 of the original.

    Arguments:
        name_or_path: as in `open_checkpoint`.
        destination: a file in an existing folder; it is replaced if it is there.
        dtype: what the weights are rounded to: `"float32"`, `"float16"` or `"bfloat16"`. None: as
            they are.
        orth_start, norms: what `apply` does with the result by default, see `Defaults`. None: as
            with the original.

    Raises:
        GHNInitError: as `open_checkpoint`; or a default is none, `destination` cannot be written
            or says another format, or a weight is too large for `dtype`.
    """
    check_safetensors_name(destination)
    if dtype is not None and dtype not in _STORED_DTYPES:
        raise GHNInitError(f"unknown dtype {dtype!r}: choose one of {', '.join(_STORED_DTYPES)}.")
    rounded = None if dtype is None else _STORED_DTYPES[dtype]
    chosen: dict[str, Any] = {} if orth_start is None else {"orth_start": orth_start}
    chosen |= {} if norms is None else {"norms": frozenset(norms)}
    Defaults(**chosen)  # refuses nonsense before anything is read
    found = locate(name_or_path)
    with opened(found) as original:
        marks = stamp(original)
        settle(marks)
        file = Unchanging(original)
        check_checksum(file.sha256, None, found)
        with atomic_path(destination) as temporary:
            weights = read_weights(file)
            defaults = defaults_beside(found.config_path, weights.config, weights.defaults)
            weights = replace(weights, defaults=replace(defaults, **chosen))
            metadata = _metadata(weights, file.sha256)
            if found.revision is not None:
                metadata |= {"ghn_init.source": found.source, "ghn_init.revision": found.revision}
            copy(temporary, weights.tensors, file, metadata, rounded)
            expect_unchanged(original, marks)


def convert_to_cache(weights: Weights, file: Unchanging) -> None:
    """Writes the canonical form of a file to the cache, unless a sound one is there.

    Arguments:
        weights: what the file holds.
        file: the original.
    """

    def write(path: Path) -> None:
        copy(path, weights.tensors, file, _metadata(weights, file.sha256))

    present = cache.find_converted(file.sha256)
    if present is None or canonical(present) is None:
        size = sum(tensor.nbytes for tensor in weights.tensors.values())
        cache.store_converted(file.sha256, size, write, lambda path: canonical(path) is not None)


def _metadata(weights: Weights, digest: str) -> dict[str, str]:
    return {
        **weights.history,
        **own_metadata(weights.config, weights.defaults),
        "ghn_init.source_sha256": digest,
        "ghn_init.source_layout": weights.layout,
    }
