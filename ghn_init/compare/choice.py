"""`--methods all`: which methods apply to a model and data, and why the others do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ghn_init.analysis.initializations import Checkpoints, load_hypernetwork, refuse_needy
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.load import load_default
from ghn_init.methods.registry import METHODS, load_installed_methods
from ghn_init.methods.variants import Variant, parse_method
from ghn_init.report import Report

ALL = "all"
"""In a list of methods: every registered one that applies."""


@dataclass(frozen=True)
class Choice:
    """Methods to compare.

    Arguments:
        variants: those that apply, the model's own initialization first.
        hypernetworks: that they need.
        left_out: why the others do not apply, by name.
    """

    variants: tuple[Variant, ...]
    hypernetworks: tuple[GHN, ...]
    left_out: Mapping[str, str]


def choose(
    ghn: Checkpoints,
    at_hand: Callable[[Variant], Collection[str]],
    named: Collection[str],
    attempt: Callable[[Variant, Mapping[str, GHN]], Report],
) -> Choice:
    """Try every other registered method once, in one step where it takes steps.

    Arguments:
        ghn: as in `compare`. Where none is given, the defaults that can be had.
        at_hand: which of `methods.method.NEEDS` a method can be given.
        named: methods that are compared anyway.
        attempt: initializes a model by a method with the hypernetworks, by architecture.
    """
    load_installed_methods()
    loaded, missing = _available(ghn)
    variants, left_out = [], {}
    others = [name for name in METHODS if name not in named]
    for name in sorted(others, key=lambda name: _does_something(parse_method(name))):
        variant, arch = parse_method(name), METHODS[name].hypernetwork
        try:
            if arch is not None and arch not in loaded:
                raise GHNInitError(missing[arch])
            refuse_needy(variant, at_hand(variant))
            steps = 1 if "steps" in METHODS[name].settings else None
            report = attempt(parse_method(name, steps=steps), loaded)
            if _does_something(variant) and not report.written:
                reasons = "; ".join(dict.fromkeys(report.left.values()))
                raise GHNInitError(f"it leaves everything: {reasons}")
        except GHNInitError as error:
            left_out[name] = str(error)
        else:
            variants.append(variant)
    needed = {variant.method.hypernetwork for variant in variants}
    return Choice(
        tuple(variants), tuple(h for arch, h in loaded.items() if arch in needed), left_out
    )


def _does_something(variant: Variant) -> bool:
    return variant.method.values is not None or variant.refines


def _available(ghn: Checkpoints) -> tuple[dict[str, GHN], dict[str, str]]:
    """Hypernetworks by architecture, and why there is none of the others."""
    archs = {method.hypernetwork for method in METHODS.values() if method.hypernetwork}
    if ghn is not None:
        given = [ghn] if isinstance(ghn, (str, os.PathLike, GHN)) else ghn
        loaded = {h.config.arch: h for h in map(load_hypernetwork, given)}
        return loaded, {arch: f"no {arch} checkpoint is given" for arch in archs - loaded.keys()}
    loaded, missing = {}, {}
    for arch in sorted(archs):
        try:
            loaded[arch], _ = load_default(arch)
        except GHNInitError as error:
            missing[arch] = str(error)
    return loaded, missing
