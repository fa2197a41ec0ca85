"""`load_ghn`: a checkpoint as a hypernetwork that is ready to predict."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from ghn_init.errors import GHNInitError
from ghn_init.loading.embedded import EMBEDDED, EMBEDDED_ARCH
from ghn_init.loading.hub import DEFAULTS, KNOWN, REPOSITORY, HubRepository
from ghn_init.loading.hub_errors import NotAvailable
from ghn_init.loading.locate import refuse_damaged

if TYPE_CHECKING:
    import torch

    from ghn_init.hypernetwork.ghn import GHN


def load_ghn(
    name_or_path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    sha256: str | None = None,
    dtype: torch.dtype | None = None,
    trainable: bool = False,
) -> GHN:
    """Load a graph hypernetwork.

    Nothing that the file says is ever executed. On the CPU the weights are memory-mapped: what a
    model does not need is not read. Foreign layouts are converted once, into the cache.

    Arguments:
        name_or_path: `"ghn3xlm16"`, `"ghn3lm8"`, `"ghn3sm8"`, `"ghn3tm8"` or `"ghn2"`, fetched
            from the Hugging Face Hub unless cached, and pinned with `"ghn3tm8@<commit>"`;
            `"embedded"`, the small one that is part of this package;
            `"hf-hub:organization/name[@revision]"` or `"hf-hub:organization/name/path/file"`, from
            anyone's repository on the Hub; `"local-dir:folder"`, as `save` writes one; or a local
            file in a published layout (joblib or torch) or in our own safetensors.
        device: where the hypernetwork computes.
        sha256: the checksum that the file must have. Default: any.
        dtype: `torch.float32` (default), or `torch.bfloat16` for half the memory: predictions are
            then computed in bfloat16, and returned in float32. A file that `ghn-init convert
            --dtype bfloat16` has written is memory-mapped as it is.
        trainable: let the weights take gradients, and hold them in memory of their own; see
            `differentiable` of `ghn_init.predict`.

    Returns: the hypernetwork in evaluation mode, its weights frozen unless they are `trainable`.

    Raises:
        GHNInitError: another dtype, no such device, an unknown name, a file that is missing,
            damaged, no hypernetwork or unsafe, or a checkpoint that can neither be found in the
            cache nor fetched.
    """
    refuse_damaged(name_or_path)
    # Only now what imports torch: that takes a second and some 500 MB, also for a damaged file.
    import torch

    from ghn_init.devices import usable_device
    from ghn_init.hypernetwork.ghn import without_weights
    from ghn_init.loading.checkpoint import open_checkpoint, read_tensors

    if dtype not in (None, torch.float32, torch.bfloat16):
        raise GHNInitError(f"dtype is {dtype}: give torch.float32 or torch.bfloat16.")
    device = usable_device(device)
    checkpoint = open_checkpoint(name_or_path, sha256=sha256)
    tensors = read_tensors(checkpoint, device, dtype or torch.float32)
    ghn = without_weights(
        checkpoint.config, checkpoint.name, checkpoint.origin, checkpoint.defaults
    )
    if trainable:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    ghn.load_state_dict(tensors, assign=True)
    return ghn.requires_grad_(trainable).eval()


def load_default(arch: str, device: str | torch.device = "cpu") -> tuple[GHN, str]:
    """The hypernetwork for an architecture where the user has named none.

    It is the published one (`DEFAULTS`) if that is cached or the Hub can be reached, otherwise the
    embedded one, with a warning.

    Arguments:
        arch: `"ghn3"`; or `"ghn2"`, of which none is embedded.
        device: as in `load_ghn`.

    Returns: the hypernetwork, and the warning; empty if there was no need for one.

    Raises:
        GHNInitError: as `load_ghn`, but not for want of a network, unless `arch` is `"ghn2"`.
    """
    name = DEFAULTS[arch]
    if arch != EMBEDDED_ARCH:
        return load_ghn(name, device), ""
    try:
        HubRepository(REPOSITORY, asked=name).check_reachable(KNOWN[name])
        return load_ghn(name, device), ""
    except NotAvailable as error:
        warning = (
            f"the default checkpoint {name} is not available ({error.cause}): using the small "
            "embedded one, trained on CIFAR-10, instead. ghn='embedded' chooses it without this "
            f"warning, ghn={name!r} insists on the other."
        )
    warnings.warn(warning, stacklevel=2)
    return load_ghn(EMBEDDED, device), warning
