"""The one list of methods. Whatever asks what a method is asks here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from ghn_init.errors import GHNInitError
from ghn_init.methods.baselines import BASELINES
from ghn_init.methods.frequency import FRONT
from ghn_init.methods.gradinit import GRADINIT
from ghn_init.methods.hypernetworks import HYPERNETWORKS
from ghn_init.methods.impulse import IMPULSE
from ghn_init.methods.lsuv import LSUV
from ghn_init.methods.metainit import METAINIT
from ghn_init.methods.method import Method
from ghn_init.methods.mimetic import MIMETIC
from ghn_init.methods.nio import NIO
from ghn_init.methods.selection import PRETRAINED, SELECT

ENTRY_POINTS = "ghn_init.methods"
"""The group of entry points in which an installed package can offer a `Method` of its own."""

_registered: dict[str, Method] = {}

METHODS: Mapping[str, Method] = MappingProxyType(_registered)
"""All methods by name; read only."""


def register(method: Method) -> Method:
    """Add a method, which then works wherever a method can be named.

    Arguments:
        method: its name must be new.

    Returns: the method.

    Raises:
        GHNInitError: there is a method of that name, or the name has other characters than
            letters, digits, `-` and `_`.
    """
    if not re.fullmatch(r"[\w-]+", method.name):
        raise GHNInitError(f"a method cannot be called {method.name!r}: use letters, digits, - _.")
    if _registered.setdefault(method.name, method) != method:
        raise GHNInitError(f"there is a method {method.name!r} already: choose another name.")
    return method


def find_method(name: str) -> Method:
    """A method by name, also one that an installed package offers as an entry point.

    Raises:
        GHNInitError: there is none; the message has those that there are.
    """
    if name not in _registered:
        load_installed_methods()
    if name not in _registered:
        close = difflib.get_close_matches(name, _registered, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise GHNInitError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}.{hint}")
    return _registered[name]


def load_installed_methods() -> None:
    """Register what installed packages offer (entry points of the group `ghn_init.methods`)."""
    for entry in entry_points(group=ENTRY_POINTS):
        method = entry.load()
        if not isinstance(method, Method):
            raise GHNInitError(
                f"entry point {entry.name} of {entry.value} is no ghn_init.methods.Method."
            )
        register(method)


for _method in (
    *HYPERNETWORKS, *BASELINES, MIMETIC, IMPULSE,
    LSUV, METAINIT, GRADINIT, NIO,
    SELECT, FRONT, PRETRAINED,
):  # fmt: skip
    register(_method)
