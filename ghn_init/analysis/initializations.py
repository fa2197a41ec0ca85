"""A model initialized by each of several methods."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ghn_init.api import Checkpoint, apply
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.images.batches import Batch
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.methods.variants import Variant, different_methods, parse_method
from ghn_init.report import Report

PRETRAINED = "pretrained"
"""The method that takes a model with published weights as it is."""

Checkpoints = Checkpoint | Sequence[Checkpoint] | None
"""One; or several, one an architecture; or the defaults."""


def load_hypernetwork(checkpoint: Checkpoint) -> GHN:
    """A hypernetwork as it is, or loaded from its name or path.

    Raises:
        GHNInitError: it cannot be loaded.
    """
    return checkpoint if isinstance(checkpoint, GHN) else load_ghn(checkpoint)


def check_methods(methods: Sequence[str], at_hand: Collection[str] = ()) -> tuple[str, ...]:
    """The methods, of the registry or `"pretrained"`, if there is one at least and none twice.

    Arguments:
        methods: with settings and second steps, as `parse_method` reads them.
        at_hand: which of `methods.method.NEEDS` they can be given.

    Raises:
        GHNInitError: otherwise, or a method is unknown or needs what is not there.
    """
    own = [method for method in methods if method != PRETRAINED]
    if not isinstance(methods, str) and len(methods) - len(own) == 1 and not own:
        return (PRETRAINED,)
    for variant in different_methods(methods if isinstance(methods, str) else own):
        refuse_needy(variant, at_hand)
    return tuple(methods)


def refuse_needy(variant: Variant, at_hand: Collection[str] = ()) -> None:
    """Refuse a method that needs more than a model, a hypernetwork and what is at hand.

    Raises:
        GHNInitError: saying what it needs.
    """
    if missing := [name for name in variant.needs if name not in at_hand]:
        raise GHNInitError(
            f"method {variant.name!r} needs {' and '.join(missing)}: give that, or leave the "
            "method out."
        )


def needed(
    variant: Variant, images: Tensor | None, labels: Tensor | None, source: Any
) -> dict[str, Any]:
    """The arguments of `apply` that a method cannot do without, of those that are at hand."""
    given = {"images": images, "labels": labels, "source": source}
    return {name: given[name] for name in variant.needs}


def architecture(method: str | Variant) -> str | None:
    """Of the hypernetwork that a method needs; None if it needs none."""
    return None if method == PRETRAINED else parse_method(method).method.hypernetwork


def load_hypernetworks(
    methods: Sequence[str | Variant], checkpoints: Checkpoints
) -> dict[str, GHN]:
    """The hypernetworks that the methods need, by architecture, each loaded once.

    Raises:
        GHNInitError: a checkpoint that cannot be loaded, or two of one architecture.
    """
    given = [checkpoints] if isinstance(checkpoints, (str, os.PathLike, GHN)) else checkpoints
    loaded = [load_hypernetwork(item) for item in given or ()]
    by_arch = {ghn.config.arch: ghn for ghn in loaded}
    if len(by_arch) < len(loaded):
        raise GHNInitError("two checkpoints of one architecture: give one for ghn3, one for ghn2.")
    wanted = sorted({arch for method in methods if (arch := architecture(method))})
    return {arch: by_arch.get(arch) or load_default(arch)[0] for arch in wanted}


def initialized(
    model: nn.Module,
    method: str,
    hypernetworks: Mapping[str, GHN],
    pretrained: nn.Module | None = None,
    *,
    noise: float | None = None,
    seed: int = 0,
    example_inputs: object = None,
    batch: Batch | None = None,
    source: Any = None,
) -> tuple[nn.Module, Report | None]:
    """A copy of the model, initialized; and the report, which `pretrained` has none of.

    Arguments:
        model: it is left as it is.
        method: of `apply`, or `"pretrained"`.
        hypernetworks: by architecture.
        pretrained: the model with published weights.
        noise, seed, example_inputs, source: as in `apply`.
        batch: for methods that need images or labels.

    Raises:
        GHNInitError: as `apply`; or there is no pretrained model.
    """
    if method == PRETRAINED:
        if pretrained is None:
            raise GHNInitError("method pretrained needs the pretrained model: give pretrained=.")
        return copy.deepcopy(pretrained), None
    variant = parse_method(method)
    arch = variant.method.hypernetwork
    images, labels = (None, None) if batch is None else batch
    return apply(
        copy.deepcopy(model),
        variant,
        ghn=hypernetworks[arch] if arch else None,
        **needed(variant, images, labels, source),
        noise=noise,
        seed=seed,
        example_inputs=example_inputs,
        return_report=True,
    )
