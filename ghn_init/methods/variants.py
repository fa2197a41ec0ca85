"""Methods with settings, as `apply` runs them and as text: `ghn3-orth:noise=0+lsuv:steps=5`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.methods.method import NEEDS, Method
from ghn_init.methods.registry import METHODS, find_method
from ghn_init.settings import fields_of

NORM_LAYERS = ("auto", "predict", "keep")
"""What can be done with the parameters of normalization layers."""


@dataclass(frozen=True)
class Variant:
    """A method, with what differs from its defaults, and second steps behind it.

    Arguments:
        method: of the registry.
        noise: beta of the second paper's Eq. 1. Default: the method's.
        orth_start: L of the second paper, a layer counted from 1 (int) or a share of the depth
            (float). Default: the method's, or what suits the checkpoint.
        norms: one of `NORM_LAYERS`. Default: `"auto"`.
        options: names and values of the method's own settings (`Method.options`).
        then: methods that refine what stands before them, without second steps of their own.

    Raises:
        GHNInitError: a setting that the method does not have, or a value that it cannot take; or a
            method that cannot stand behind another.
    """

    method: Method
    noise: float | None = None
    orth_start: int | float | None = None
    norms: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    then: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        for key in self.given:
            if key not in self.method.settings:
                raise _lacking(key, self.method.name)
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
        _ = self.own  # refuses values that it cannot take
        for step in self.then:
            _check_second(step)

    @property
    def steps(self) -> tuple[Variant, ...]:
        """The method alone, and the second steps behind it."""
        return (replace(self, then=()), *self.then)

    @property
    def name(self) -> str:
        """Without settings: `ghn3-orth+lsuv`."""
        return "+".join(step.method.name for step in self.steps)

    @property
    def own(self) -> Any:
        """The method's own settings, as an object of its `Method.options`; None: it has none."""
        return None if self.method.options is None else self.method.options(**dict(self.options))

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the settings that differ from the defaults, in the order of the label."""
        shared = tuple(key for key in _LACKS if getattr(self, key) is not None)
        return (*shared, *(key for key, _ in self.options))

    @property
    def label(self) -> str:
        """As `parse_method` reads it: `ghn3-orth:noise=0+lsuv`."""
        given = []
        if self.noise is not None:
            given.append(f"noise={float(self.noise)!r}".removesuffix(".0"))
        if self.orth_start is not None:  # 1.0 is a share of the depth, 1 a layer
            given.append(f"orth_start={self.orth_start!r}")
        if self.norms is not None:
            given.append(f"norms={self.norms}")
        given += [f"{key}={value}" for key, value in self.options]
        first = ":".join([self.method.name, *([",".join(given)] if given else [])])
        return "+".join([first, *(step.label for step in self.then)])

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments of `apply` that it cannot do without: of `images`, `labels`, `source`."""
        return _in_order(name for step in self.steps for name in step.method.needs)

    @property
    def uses(self) -> tuple[str, ...]:
        """Those that it needs, and those that it uses where they are given."""
        optional = (name for step in self.steps for name in step.method.optional)
        return _in_order((*self.needs, *optional))

    @property
    def briefest(self) -> Variant:
        """The same with one step of whatever takes steps, to see whether it can be used."""
        first, *others = (
            _set(step, {"steps": 1}) if "steps" in step.method.settings else step
            for step in self.steps
        )
        return replace(first, then=tuple(others))

    @property
    def refines(self) -> bool:
        """Whether a step changes values that are there, for which the model has to run."""
        return any(step.method.refine for step in self.steps)


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


def _lacking(key: str, name: str) -> GHNInitError:
    lacks = _LACKS.get(key, "has no such setting")
    return GHNInitError(f"{key}: method {name!r} {lacks}. Leave it out.")


def _check_second(step: Variant) -> None:
    """Refuse a second step that could not be one."""
    name = step.method.name
    if step.then:
        raise GHNInitError(f"{step.label!r} has second steps of its own: give them one by one.")
    if step.method.refine is None:
        able = ", ".join(other.name for other in METHODS.values() if other.refine)
        raise GHNInitError(
            f"{name!r} cannot stand behind another method, as it changes no values that are "
            f"there. Those that can: {able or 'none'}."
        )
    if shared := [key for key in step.given if key in _LACKS]:
        raise GHNInitError(
            f"{shared[0]}: {name!r} stands behind another method, and starts from its values. "
            "Leave it out."
        )


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    given = set(names)
    return tuple(name for name in NEEDS if name in given)


def _is_from_zero_up(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf  # type: ignore[operator]


def parse_method(text: str | Variant, **settings: Any) -> Variant:
    """A method, its settings and second steps from text.

    Arguments:
        text: `NAME[:key=value,...]`, with `+NAME[:key=value,...]` for each second step; the keys
            are `noise`, `orth_start` and `norms`, and the names of a method's own settings.
        settings: further ones, for each step that has them; those that are None do not count.

    Raises:
        GHNInitError: an unknown method or key, a value that the method cannot take, or a setting
            that is given twice.
    """
    variant = text if isinstance(text, Variant) else _parse(text)
    for key, value in settings.items():
        if value is not None:
            variant = _with(variant, key, value)
    return variant


def _with(variant: Variant, key: str, value: Any) -> Variant:
    """The variant with one more setting, of each step that has it."""
    if key in _LACKS:
        having = variant.steps[:1]
    else:
        having = tuple(step for step in variant.steps if key in step.method.settings)
    if not having:
        raise _lacking(key, variant.name)
    if any(key in step.given for step in having):
        raise GHNInitError(f"{key} is given twice, in {variant.label!r} too: give it once.")
    first, *others = (
        _set(step, {key: value}) if step in having else step for step in variant.steps
    )
    return replace(first, then=tuple(others))


def _set(step: Variant, values: dict[str, Any]) -> Variant:
    shared = {key: value for key, value in values.items() if key in _LACKS}
    own = {**dict(step.options), **{k: v for k, v in values.items() if k not in _LACKS}}
    order = step.method.settings  # of the label, whatever the order in which they are given
    names = sorted(own, key=lambda name: order.index(name) if name in order else -1)
    return replace(step, **shared, options=tuple((name, own[name]) for name in names))


def _parse(text: str) -> Variant:
    if not isinstance(text, str):
        raise GHNInitError(f"method is a {type(text).__name__}: give a name, such as 'ghn3-orth'.")
    first, *then = map(_parse_step, re.split(r"\+(?=[A-Za-z_])", text))  # not in a number: 1e+5
    return replace(first, then=tuple(then))


def _parse_step(text: str) -> Variant:
    name, _, settings = text.partition(":")
    method = find_method(name)
    own = () if method.options is None else fields_of(method.options)
    readers = _READ | {field.name: field.kind for field in own}
    values: dict[str, Any] = {}
    for setting in settings.split(",") if settings else ():
        key, _, value = setting.partition("=")
        if key not in readers or key in values:
            known = ", ".join(readers)
            raise GHNInitError(f"{setting!r} in method {text!r}: give one of {known}, once each.")
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise GHNInitError(f"{setting!r} in method {text!r}: give a number.") from error
    return _set(Variant(method), values)


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
        if parts and "=" in part.partition(":")[0]:
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
