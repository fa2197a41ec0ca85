"""`export`: a model by name, initialized and written to a safetensors file."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from ghn_init import __version__
from ghn_init.api import apply
from ghn_init.files import atomic_path
from ghn_init.loading.readers.safetensors_files import save
from ghn_init.report import Report


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str,
    library: str = "",
    method: str = "ghn3-orth",
    **options: Any,
) -> Report:
    """Initialize a model and write its state dict.

    The file loads with `safetensors.torch.load_model` and with `load_state_dict(strict=True)`.
    Its metadata names the model, method, checkpoint (with its sha256), seed and package version.
    It is replaced whole or not at all.

    Arguments:
        model: the model; it is initialized in place.
        path: file to write.
        name: the model's name, for the metadata.
        library: where the name is from, for the metadata.
        method: as in `apply`.
        options: further keyword arguments of `apply`.

    Raises:
        GHNInitError: as `apply`, or the file cannot be written; a file that was there stays.
    """
    with atomic_path(path) as temporary:  # refuses a bad path before the work, not after it
        _, report = apply(model, method, **options, return_report=True)
        metadata = {
            "format": "pt",
            "model": name,
            "library": library,
            "method": report.method,
            "checkpoint": report.checkpoint or "",
            "checkpoint_sha256": report.checkpoint_sha256,
            "checkpoint_source": report.checkpoint_source,
            "checkpoint_revision": report.checkpoint_revision or "",
            "seed": str(report.seed),
            "ghn_init_version": __version__,
        }
        save(temporary, model.state_dict(), metadata)
    return report
