"""What the fields of a settings dataclass may be: written beside their types, checked at once.

    @dataclass(frozen=True)
    class Schedule:
        save_every: Annotated[int, Range(1)] = 250

        def __post_init__(self) -> None:
            check(self)

`ghn_init.cli.options` makes command line options of such a class.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from ghn_init.errors import GHNInitError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`, both included."""

    least: float
    most: float = math.inf

    def __contains__(self, value: Any) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"{self.least:g} or more"
        return f"a number from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Above:
    """Finite numbers greater than `bound`."""

    bound: float

    def __contains__(self, value: Any) -> bool:
        return math.isfinite(value) and value > self.bound

    def __str__(self) -> str:
        return f"more than {self.bound:g}"


@dataclass(frozen=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return " or ".join((", ".join(self.words[:-1]), self.words[-1]))


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Field:
    """A field of a settings dataclass.

    Arguments:
        name: of the field.
        kind: its type, or that of its elements; without None.
        many: whether it is a tuple of any length.
        optional: whether it may be None.
        rule: what its values must be in; None: any of the type.
    """

    name: str
    kind: type
    many: bool = False
    optional: bool = False
    rule: Range | Above | OneOf | None = None


def fields_of(settings: type) -> Iterator[Field]:
    """The fields of a settings dataclass, in order."""
    for name, hint in typing.get_type_hints(settings, include_extras=True).items():
        rule, many, optional = None, False, False
        while args := typing.get_args(hint):  # of the layers of a type, from the outside
            if typing.get_origin(hint) is Annotated:
                rule = args[1]
            many = many or typing.get_origin(hint) is tuple
            optional = optional or type(None) in args
            hint = args[0]
        yield Field(name, hint, many, optional, rule)


def check(settings: object) -> None:
    """Refuse values that the fields of a settings dataclass cannot have.

    Raises:
        GHNInitError: naming the field, its value and what it may be.
    """
    for field in fields_of(type(settings)):
        value = getattr(settings, field.name)
        if value is None and field.optional:
            continue
        for item in value if field.many else [value]:
            if not _fits(item, field):
                what = f"{field.name} is {item!r}"
                raise GHNInitError(f"{what}: give {field.rule or f'a {field.kind.__name__}'}.")
        if field.many and not value:
            raise GHNInitError(f"{field.name} is empty: give at least one.")


def _fits(value: Any, field: Field) -> bool:
    kinds = (int, float) if field.kind is float else field.kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and field.kind is not bool):
        return False
    return field.rule is None or value in field.rule
