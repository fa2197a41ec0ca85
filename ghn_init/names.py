"""Lists of parameter names, short enough to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r"\d+")


def abridged(names: Iterable[str]) -> str:
    """Dotted names on one line: those that differ in numbers only are written once, with `*`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_NUMBER.sub("*", name), []).append(name)
    shown = [same[0] if len(same) == 1 else _pattern(same) for same in alike.values()]
    return ", ".join(shown)


def _pattern(names: Sequence[str]) -> str:
    """One name for several: `*` for the numbers in which they differ, and how many they are."""
    numbers = zip(*map(_NUMBER.findall, names), strict=True)
    shown = iter([same[0] if len(set(same)) == 1 else "*" for same in numbers])
    return f"{_NUMBER.sub(lambda _: next(shown), names[0])} ({len(names)})"


def grouped_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """`(names, reason)`, abridged, for a mapping from names to reasons."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [(abridged(names), reason) for reason, names in by_reason.items()]
