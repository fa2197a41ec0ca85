"""A model initialized by each of several methods."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence

from torch import nn

from ghn_init.api import Checkpoint, apply
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.methods.method import Method
from ghn_init.methods.variants import different_methods, parse_method
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


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, of the registry or `"pretrained"`, if there is one at least and none twice.

    Raises:
        GHNInitError: otherwise, or a method is unknown or needs what is not there.
    """
    own = [method for method in methods if method != PRETRAINED]
    if not isinstance(methods, str) and len(methods) - len(own) == 1 and not own:
        return (PRETRAINED,)
    for variant in different_methods(methods if isinstance(methods, str) else own):
        refuse_needy(variant.method)
    return tuple(methods)


def refuse_needy(method: Method) -> None:
    """Refuse a method that cannot do with a model and a hypernetwork.

    Raises:
        GHNInitError: saying what it needs.
    """
    if method.needs:
        raise GHNInitError(
            f"method {method.name!r} needs {' and '.join(method.needs)}, which only "
            "ghn_init.apply can be given: leave it out."
        )


def architecture(method: str) -> str | None:
    """Of the hypernetwork that a method needs; None if it needs none."""
    return None if method == PRETRAINED else parse_method(method).method.hypernetwork


def load_hypernetworks(methods: Sequence[str], checkpoints: Checkpoints) -> dict[str, GHN]:
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
) -> tuple[nn.Module, Report | None]:
    """A copy of the model, initialized; and the report, which `pretrained` has none of.

    Arguments:
        model: it is left as it is.
        method: of `apply`, or `"pretrained"`.
        hypernetworks: by architecture.
        pretrained: the model with published weights.
        noise, seed, example_inputs: as in `apply`.

    Raises:
        GHNInitError: as `apply`; or there is no pretrained model.
    """
    if method == PRETRAINED:
        if pretrained is None:
            raise GHNInitError("method pretrained needs the pretrained model: give pretrained=.")
        return copy.deepcopy(pretrained), None
    arch = architecture(method)
    return apply(
        copy.deepcopy(model),
        method,
        ghn=hypernetworks[arch] if arch else None,
        noise=noise,
        seed=seed,
        example_inputs=example_inputs,
        return_report=True,
    )
