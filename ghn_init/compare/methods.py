"""Initializations to compare: the methods of `apply`, and ablations of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghn_init.api import METHODS, NORM_LAYERS
from ghn_init.errors import GHNInitError


@dataclass(frozen=True)
class Method:
    """An initialization, with what differs from its defaults.

    Arguments:
        name: of `ghn_init.METHODS`.
        noise: beta of the second paper's Eq. 1, for ghn methods. Default: that of `apply`.
        orth_start: L of the second paper, for `ghn*-orth` methods: a layer (int) or a share of the
            depth (float). Default: that of `apply`.
        norms: `"auto"`, `"predict"` or `"keep"`, for ghn methods. Default: that of `apply`.

    Raises:
        GHNInitError: an unknown name, or a value that the method does not have or take.
    """

    name: str
    noise: float | None = None
    orth_start: int | float | None = None
    norms: str | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise GHNInitError(f"unknown method {self.name!r}: choose among {', '.join(METHODS)}.")
        for key in _READ:
            if getattr(self, key) is not None and key not in self.keys:
                raise GHNInitError(f"method {self.name} has no {key}: leave it out.")
        if self.norms not in (None, *NORM_LAYERS):
            raise GHNInitError(
                f"norms of {self.name} is {self.norms!r}: give one of {', '.join(NORM_LAYERS)}."
            )
        for key in ("noise", "orth_start"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise GHNInitError(f"{key} of {self.name} is {value}: give a number from 0 up.")
        if isinstance(self.orth_start, float) and self.orth_start > 1:
            raise GHNInitError(
                f"orth_start of {self.name} is {self.orth_start}: give a layer (int) or a share "
                "of the depth, at most 1."
            )

    @property
    def arch(self) -> str | None:
        """Architecture of the hypernetwork that it needs; None for the baselines."""
        return self.name.split("-")[0] if self.name.startswith("ghn") else None

    @property
    def keys(self) -> tuple[str, ...]:
        """What can be set."""
        if self.arch is None:
            return ()
        orth = ("orth_start",) if self.name.endswith("-orth") else ()
        return ("noise", *orth, "norms")

    @property
    def label(self) -> str:
        """As `parse_methods` reads it: `ghn3-orth:noise=0`."""
        given = []
        if self.noise is not None:
            given.append(f"noise={float(self.noise)!r}".removesuffix(".0"))
        if self.orth_start is not None:  # 1.0 is a share of the depth, 1 a layer
            given.append(f"orth_start={self.orth_start!r}")
        if self.norms is not None:
            given.append(f"norms={self.norms}")
        return f"{self.name}:{','.join(given)}" if given else self.name


_READ: dict[str, Callable[[str], Any]] = {
    "noise": float,
    "orth_start": lambda text: int(text) if text.isdigit() else float(text),
    "norms": str,
}


def parse_methods(
    text: str, noise: float | None = None, orth_start: int | float | None = None
) -> tuple[Method, ...]:
    """Methods from a list such as `"rand,ghn3,ghn3-orth:noise=0,orth_start=20"`.

    Arguments:
        text: `NAME[:key=value,...]`, with commas between them; the keys are `noise`,
            `orth_start` and `norms`.
        noise, orth_start: for all methods that have them and do not say otherwise.

    Raises:
        GHNInitError: an unknown method or key, a value that is no number or not the method's to
            have, no method, or one twice.
    """
    # A comma also stands between the settings of one method: what has a "=" goes on with it.
    parts: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if parts and "=" in part and ":" not in part:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    methods = [_with_defaults(_parse(part), noise, orth_start) for part in parts]
    return check_methods(methods)


def check_methods(methods: Sequence[Method]) -> tuple[Method, ...]:
    """The methods, if there is one at least and none twice.

    Raises:
        GHNInitError: otherwise.
    """
    labels = [method.label for method in methods]
    if not labels or len(set(labels)) < len(labels):
        raise GHNInitError(f"methods are {', '.join(labels)!r}: give one or more different ones.")
    return tuple(methods)


def _parse(text: str) -> Method:
    name, _, settings = text.partition(":")
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
    return Method(name, **values)


def _with_defaults(method: Method, noise: float | None, orth_start: int | float | None) -> Method:
    if "noise" in method.keys and method.noise is None:
        method = replace(method, noise=noise)
    if "orth_start" in method.keys and method.orth_start is None:
        method = replace(method, orth_start=orth_start)
    return method
