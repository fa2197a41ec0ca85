"""Models run on images: what they are given, what of their outputs counts, what is watched."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ghn_init.errors import GHNInitError

MOST_IMAGES = 512
"""Images that commands give a method that needs some, where there are as many."""

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def check_images(images: Tensor | None, labels: Tensor | None) -> None:
    """Refuse images and labels that no method can use.

    Arguments:
        images: `(B, C, H, W)`, or None.
        labels: `(B,)`, or None.

    Raises:
        GHNInitError: other types, sizes or numbers.
    """
    if images is not None:
        _check_batch("images", images)
        if not images.is_floating_point() or images.dim() < 2:
            raise GHNInitError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: give normalized ones "
                "in floating point, (B, C, H, W)."
            )
        if not torch.isfinite(images).all():
            raise GHNInitError("images have values that are not finite: leave those images out.")
    if labels is not None:
        _check_batch("labels", labels)
        if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1:
            raise GHNInitError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}: give class indices, "
                "integers of shape (B,)."
            )
        if images is not None and len(labels) != len(images):
            raise GHNInitError(f"{len(images)} images and {len(labels)} labels: give one each.")


def _check_batch(what: str, given: object) -> None:
    if not isinstance(given, Tensor):
        raise GHNInitError(f"{what} is a {type(given).__name__}: give a tensor.")
    if given.is_meta or not given.numel():
        raise GHNInitError(f"{what} has no values: give a batch of them.")


def image_inputs(model: nn.Module, images: Tensor) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Arguments of a model's forward: the images in the place of each input that it asks for.

    (Siamese networks and optical flow take two; transformers' models take one by its name.)
    """
    parameters = inspect.signature(model.forward).parameters
    if "pixel_values" in parameters:
        return {"pixel_values": images}
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.kind in by_position and p.default is p.empty]
    return (images,) * max(1, len(needed))


def run_on(model: nn.Module, images: Tensor) -> Any:
    """What a model returns for the images, see `image_inputs`."""
    inputs = image_inputs(model, images)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def use_batch_statistics(model: nn.Module) -> None:
    """Evaluation mode, except for batch norms."""
    model.eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.train()


@contextlib.contextmanager
def watching(model: nn.Module, layers: Sequence[str], record: Any) -> Iterator[None]:
    """In the block, `record(name, output)` is called with the output of each layer.

    `record` may return a tensor to go on with in place of the output.
    """
    modules = dict(model.named_modules())
    handles = []
    try:
        for name in layers:
            module = _source(name, modules)
            if module is not None:
                handles.append(module.register_forward_hook(_hook(name, record)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _source(layer: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module whose output is the layer's output, if there is one.

    `nn.MultiheadAttention` uses its projections' weights without calling a module: its own output
    is that of the last one, `out_proj`, and the outputs of the others do not come out.
    """
    owner = layer.rpartition(".")[0]
    parent = modules[owner.rpartition(".")[0]]
    if isinstance(modules[owner], nn.MultiheadAttention):
        return None
    return parent if isinstance(parent, nn.MultiheadAttention) else modules[owner]


def _hook(name: str, record: Any) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(module, nn.MultiheadAttention):
            return record(name, output)
        replaced = record(name, output[0])
        return None if replaced is None else (replaced, output[1])

    return hook


@contextlib.contextmanager
def double_differentiable() -> Iterator[None]:
    """In the block, what has fused kernels without a second derivative is computed plainly.

    Attention is matrix products, and a hard sigmoid a clamped line.
    """
    with sdpa_kernel(SDPBackend.MATH), _PlainHardSigmoid():
        yield


class _PlainHardSigmoid(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def first_tensor(output: Any) -> Tensor:
    """A model's main output: the first tensor in whatever it returns.

    Raises:
        GHNInitError: there is none.
    """
    for leaf in torch.utils._pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise GHNInitError(f"the model returns a {type(output).__name__} without a tensor in it.")


def batch_loss(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of a classifier's output; of any other output the mean square.

    Raises:
        GHNInitError: a label that the classifier has no output for.
    """
    scores = first_tensor(output)
    if scores.dim() != 2:
        return scores.square().mean()
    if labels.max() >= scores.shape[1]:
        raise GHNInitError(
            f"there are labels up to {labels.max()} and the model has {scores.shape[1]} outputs: "
            "build it for as many classes as the data has."
        )
    return F.cross_entropy(scores, labels.to(scores.device))
