"""A method with settings, as `apply` runs it and as text: `ghn3-orth:noise=0,orth_start=20`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.methods.method import Method
from ghn_init.methods.registry import find_method

NORM_LAYERS = ("auto", "predict", "keep")
"""What can be done with the parameters of normalization layers."""


@dataclass(frozen=True)
class Variant:
    """A method, with what differs from its defaults.

    Arguments:
        method: of the registry.
        noise: beta of the second paper's Eq. 1. Default: the method's.
        orth_start: L of the second paper, a layer counted from 1 (int) or a share of the depth
            (float). Default: the method's, or what suits the checkpoint.
        norms: one of `NORM_LAYERS`. Default: `"auto"`.

    Raises:
        GHNInitError: a setting that the method does not have, or a value that it cannot take.
    """

    method: Method
    noise: float | None = None
    orth_start: int | float | None = None
    norms: str | None = None

    def __post_init__(self) -> None:
        for key, lacks in _LACKS.items():
            if getattr(self, key) is not None and key not in self.method.settings:
                raise GHNInitError(f"{key}: method {self.method.name!r} {lacks}. Leave it out.")
        if self.norms not in (None, *NORM_LAYERS):
            raise GHNInitError(
                f"unknown norms {self.norms!r}: choose one of {', '.join(NORM_LAYERS)}."
            )
        if self.noise is not None and not _is_from_zero_up(self.noise):
            raise GHNInitError(f"noise: it is {self.noise!r}. Give a number from 0 up.")
        if self.orth_start is not None and not _is_from_zero_up(self.orth_start):
            raise GHNInitError(
                f"orth_start: it is {self.orth_start!r}. "
                "Give a layer (int) or share of the depth (float)."
            )
        if isinstance(self.orth_start, float) and self.orth_start > 1:
            raise GHNInitError(
                f"orth_start is {self.orth_start}: a float is a share of the depth, at most 1. "
                f"For a layer give an int: {int(self.orth_start)}."
            )

    @property
    def label(self) -> str:
        """As `parse_method` reads it: `ghn3-orth:noise=0`."""
        given = []
        if self.noise is not None:
            given.append(f"noise={float(self.noise)!r}".removesuffix(".0"))
        if self.orth_start is not None:  # 1.0 is a share of the depth, 1 a layer
            given.append(f"orth_start={self.orth_start!r}")
        if self.norms is not None:
            given.append(f"norms={self.norms}")
        return ":".join([self.method.name, *([",".join(given)] if given else [])])


_LACKS = {
    "noise": "adds no noise",
    "orth_start": "has no orthogonal step",
    "norms": "does not write normalization layers",
}

_READ: dict[str, Callable[[str], Any]] = {
    "noise": float,
    "orth_start": lambda text: int(text) if text.isdigit() else float(text),
    "norms": str,
}


def _is_from_zero_up(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf  # type: ignore[operator]


def parse_method(text: str | Variant, **settings: Any) -> Variant:
    """A method and its settings from text.

    Arguments:
        text: `NAME[:key=value,...]`; the keys are `noise`, `orth_start` and `norms`.
        settings: further ones; those that are None do not count.

    Raises:
        GHNInitError: an unknown method or key, a value that the method cannot take, or a setting
            that is given twice.
    """
    variant = text if isinstance(text, Variant) else _parse(text)
    given = {key: value for key, value in settings.items() if value is not None}
    twice = [key for key in given if getattr(variant, key) is not None]
    if twice:
        raise GHNInitError(f"{twice[0]} is given twice, in {variant.label!r} too: give it once.")
    return replace(variant, **given)


def _parse(text: str) -> Variant:
    if not isinstance(text, str):
        raise GHNInitError(f"method is a {type(text).__name__}: give a name, such as 'ghn3-orth'.")
    name, _, settings = text.partition(":")
    method = find_method(name)
    values: dict[str, Any] = {}
    for setting in settings.split(",") if settings else ():
        key, _, value = setting.partition("=")
        if key not in _READ or key in values:
            known = ", ".join(_READ)
            raise GHNInitError(f"{setting!r} in method {text!r}: give one of {known}, once each.")
        try:
            values[key] = _READ[key](value)
        except ValueError as error:
            raise GHNInitError(f"{setting!r} in method {text!r}: give a number.") from error
    return Variant(method, **values)


def parse_methods(text: str, **defaults: Any) -> tuple[Variant, ...]:
    """Methods from a list such as `"rand,ghn3,ghn3-orth:noise=0,orth_start=20"`.

    Arguments:
        text: as `parse_method` reads it, with commas in between.
        defaults: settings for all methods that have them and do not say otherwise.

    Raises:
        GHNInitError: as `parse_method`; or no method, or one twice.
    """
    given = [_with_defaults(_parse(part), defaults) for part in split_methods(text)]
    return different_methods(given)


def split_methods(text: str) -> list[str]:
    """`"rand, ghn3:noise=0,norms=keep"` -> `["rand", "ghn3:noise=0,norms=keep"]`."""
    parts: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if parts and "=" in part and ":" not in part:
            parts[-1] += f",{part}"  # a comma also stands between the settings of one method
        else:
            parts.append(part)
    return parts


def different_methods(methods: Sequence[str | Variant]) -> tuple[Variant, ...]:
    """The methods, if there is one at least and none twice.

    Raises:
        GHNInitError: otherwise, or as `parse_method`.
    """
    found = () if isinstance(methods, str) else tuple(map(parse_method, methods))
    labels = [variant.label for variant in found]
    if not found or len(set(labels)) < len(labels):
        given = repr(methods) if isinstance(methods, str) else ", ".join(labels) or "none"
        raise GHNInitError(f"methods are {given}: give a list of one or more different ones.")
    return found


def _with_defaults(variant: Variant, defaults: dict[str, Any]) -> Variant:
    fixed = () if variant.method.orth_start is None else ("orth_start",)  # "orth" is of all layers
    unset = {
        key: defaults[key]
        for key in variant.method.settings
        if key in defaults and key not in fixed and getattr(variant, key) is None
    }
    return replace(variant, **unset)
