"""A model initialized by each of several methods."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence

from torch import nn

from ghn_init.api import METHODS, apply
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.report import Report

PRETRAINED = "pretrained"
"""The method that takes a model with published weights as it is."""

Checkpoint = str | os.PathLike[str] | GHN
"""A hypernetwork, its name or its path."""

Checkpoints = Checkpoint | Sequence[Checkpoint] | None
"""One; or several, one an architecture; or the defaults."""


def load_hypernetwork(checkpoint: Checkpoint) -> GHN:
    """A hypernetwork as it is, or loaded from its name or path.

    Raises:
        GHNInitError: it cannot be loaded.
    """
    return checkpoint if isinstance(checkpoint, GHN) else load_ghn(checkpoint)


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, if all are known and there is one at least.

    Raises:
        GHNInitError: otherwise.
    """
    known = (*METHODS, PRETRAINED)
    for method in methods:
        if method not in known:
            raise GHNInitError(f"unknown method {method!r}: choose among {', '.join(known)}.")
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise GHNInitError(f"methods are {methods!r}: give a list of one or more different ones.")
    return tuple(methods)


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
    wanted = {method.split("-")[0] for method in methods if method.startswith("ghn")}
    return {arch: by_arch.get(arch) or load_default(arch)[0] for arch in sorted(wanted)}


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
    ghn = hypernetworks.get(method.split("-")[0])
    return apply(
        copy.deepcopy(model),
        method,
        ghn=ghn,
        noise=noise if ghn is not None else None,
        seed=seed,
        example_inputs=example_inputs,
        return_report=True,
    )
