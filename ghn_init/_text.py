"""Lists of parameter names, short enough to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def abridged(names: Iterable[str]) -> str:
    """Dotted names on one line: those that differ in numbers only are written once, with `*`."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    shown = [same[0] if len(same) == 1 else f"{p} ({len(same)})" for p, same in patterns.items()]
    return ", ".join(shown)


def grouped_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """`(names, reason)`, abridged, for a mapping from names to reasons."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [(abridged(names), reason) for reason, names in by_reason.items()]
