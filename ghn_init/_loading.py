"""`load_ghn`: a checkpoint as a hypernetwork that is ready to predict."""

from __future__ import annotations

import os

import torch

from ._checkpoint import open_checkpoint, read_tensors
from ._ghn import GHN


def load_ghn(
    name_or_path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    sha256: str | None = None,
) -> GHN:
    """Load a graph hypernetwork.

    Nothing that the file says is ever executed. On the CPU the weights are memory-mapped: what a
    model does not need is not read. Foreign layouts are converted once, into the cache.

    Arguments:
        name_or_path: `"ghn3xlm16"`, `"ghn3lm8"`, `"ghn3sm8"`, `"ghn3tm8"` or `"ghn2"`, fetched
            from the Hugging Face Hub unless cached, and pinned with `"ghn3tm8@<commit>"`; or a
            local file in a published layout (joblib or torch) or in our own safetensors.
        device: where the hypernetwork computes.
        sha256: the checksum that the file must have. Default: any.

    Returns: the hypernetwork in evaluation mode, its weights frozen.

    Raises:
        GHNInitError: an unknown name, a file that is missing, damaged, no hypernetwork or unsafe,
            or a checkpoint that can neither be found in the cache nor fetched.
    """
    checkpoint = open_checkpoint(name_or_path, sha256=sha256)
    tensors = {
        name: tensor.to(device, torch.float32) for name, tensor in read_tensors(checkpoint).items()
    }
    with torch.device("meta"):
        ghn = GHN(
            checkpoint.config,
            checkpoint.name,
            checkpoint.sha256,
            checkpoint.source,
            checkpoint.revision,
        )
    ghn.load_state_dict(tensors, assign=True)
    return ghn.requires_grad_(False).eval()
