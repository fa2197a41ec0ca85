"""What stands out about an initialization, in words, with the figures it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ghn_init.analysis.measure.correlations import NEAR
from ghn_init.analysis.measure.measured import Diagnosed, LayerFigures
from ghn_init.names import abridged

GROWTH = 1e4
"""Variance that grows or shrinks by more than this from the first layer on stands out."""

DEAD = 1e-12
"""Variance of a layer's output, or squared gradient norm, up to which it counts as dead."""

MANY = 0.1
"""Share of near-duplicate channels from which a layer stands out."""


def findings(method: Diagnosed) -> tuple[str, ...]:
    """Sentences about one method, each with its figures and the panel that shows them."""
    rules = (_not_finite, _growth, _dead, _duplicates, _near_duplicates, _left, _rank)
    found = [f"{method.method}: {text}." for rule in rules for text in rule(method)]
    return tuple(found) or (f"{method.method}: nothing stands out.",)


def _not_finite(method: Diagnosed) -> Iterable[str]:
    bad = [x for x in method.hidden() if x.variance is not None and not math.isfinite(x.variance)]
    if bad:
        yield f"exploding activations: not finite from {bad[0].name} on (variance, panel E)"


def _growth(method: Diagnosed) -> Iterable[str]:
    known = [(x, x.variance) for x in method.hidden() if x.variance and math.isfinite(x.variance)]
    if not known:
        return
    (first, start), *_ = known
    for word, (layer, value) in (
        ("exploding", max(known, key=lambda pair: pair[1])),
        ("vanishing", min(known, key=lambda pair: pair[1])),
    ):
        ratio = value / start if word == "exploding" else start / value
        if ratio > GROWTH:
            yield (
                f"{word} variance: {start:.2g} in {first.name}, {value:.2g} in {layer.name} "
                "(panel E)"
            )


def _dead(method: Diagnosed) -> Iterable[str]:
    hidden = method.hidden()
    silent = [x for x in hidden if x.variance is not None and x.variance <= DEAD]
    if silent:
        yield (
            f"{_of(silent, method)} dead: output variance at most {DEAD:g} (panel E): "
            f"{_names(silent)}"
        )
    stuck = [x for x in hidden if _is_stuck(x.gradient_norm)]
    if stuck:
        largest = max(x.gradient_norm or 0.0 for x in stuck)
        yield (
            f"{_of(stuck, method)} without gradient: norm at most {largest:.2g} (panel F): "
            f"{_names(stuck)}{_because_of_scales(method)}"
        )


def _is_stuck(gradient_norm: float | None) -> bool:
    return gradient_norm is not None and gradient_norm**2 <= DEAD


def _because_of_scales(method: Diagnosed) -> str:
    """How many layers are without gradient for another reason than scales that start near zero."""
    if not method.small_scales:
        return ""
    others = [x for x in method.hidden() if _is_stuck(x.unscaled_gradient_norm)]
    left = f"{_of(others, method)} are" if others else "none is"
    return (
        f". Their gradient passes through scales that are nearly zero, as many models start: "
        f"{abridged(method.small_scales)}. With these at 1, {left} without gradient"
    )


def _duplicates(method: Diagnosed) -> Iterable[str]:
    yield from _shared(
        method, "equal to an earlier one, as tiling makes them", lambda x: x.similarity.duplicates
    )


def _near_duplicates(method: Diagnosed) -> Iterable[str]:
    yield from _shared(
        method,
        f"near-duplicates, correlation above {NEAR:g}",
        lambda x: x.similarity.near_duplicates - x.similarity.duplicates,
    )


def _shared(method: Diagnosed, kind: str, share: Callable[[LayerFigures], float]) -> Iterable[str]:
    many = [x for x in method.hidden() if share(x) > MANY]
    if many:
        worst = max(many, key=share)
        yield (
            f"{_of(many, method)} with more than {100 * MANY:.0f}% of the channels {kind}; most in "
            f"{worst.name}, {100 * share(worst):.0f}% of {worst.channels} (panel D)"
        )


def _left(method: Diagnosed) -> Iterable[str]:
    if method.coverage is not None and method.left:
        share = 100 * (1 - method.coverage)
        shown = f"{share:.2f}%" if share >= 0.01 else "less than 0.01%"
        yield (
            f"{shown} of the parameters left at the library's initialization: "
            f"{abridged(method.left)}"
        )


def _rank(method: Diagnosed) -> Iterable[str]:
    if method.rank_deficient:
        yield (
            f"{len(method.rank_deficient)} of {len(method.hidden())} layers lacked full rank "
            f"before the orthogonal step (panel G): {abridged(method.rank_deficient)}"
        )


def _of(layers: list[LayerFigures], method: Diagnosed) -> str:
    return f"{len(layers)} of {len(method.hidden())} layers"


def _names(layers: list[LayerFigures]) -> str:
    return abridged(layer.name for layer in layers)
