"""Options of commands, declared once: as the fields of a settings dataclass.

A field becomes an option: its name, type, bounds and default are the option's, and its entry in
the docstring of the class is the help. tyro does this too, and more; importing it takes longer
(0.04 s) than all of `ghn-init --help` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from ghn_init.settings import Field, OneOf, fields_of

Settings = TypeVar("Settings")

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def add_options(
    parser: argparse.ArgumentParser,
    settings: type,
    only: Collection[str] = (),
    skip: Collection[str] = (),
) -> None:
    """Add an option for each field of a settings dataclass; fields without a default are required.

    A field that is a settings dataclass itself gives the options of its own fields.

    Arguments:
        parser: of the command.
        settings: the class; see `ghn_init.settings`.
        only: the fields to take; empty: all.
        skip: fields to leave out.
    """
    helps, defaults = _helps(settings), {f.name: f for f in dataclasses.fields(settings)}
    for field in fields_of(settings):
        if field.name in skip or (only and field.name not in only):
            continue
        if dataclasses.is_dataclass(field.kind):
            add_options(parser, field.kind)
            continue
        default = defaults[field.name].default
        required = default is dataclasses.MISSING
        text = helps.get(field.name, "")
        if not required and default is not None and field.kind is not bool:
            text += f" (default: {_text(default)})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=None if required else default,
            help=text.replace("%", "%%"),
            required=required,
            **_value(field),
        )


def from_options(settings: type[Settings], options: argparse.Namespace, **given: Any) -> Settings:
    """The settings that the options of `add_options` hold.

    Arguments:
        settings: the class.
        options: what was parsed; a field without an option takes its default.
        given: fields that have another source.

    Raises:
        GHNInitError: values that the settings cannot have.
    """
    values: dict[str, Any] = {}
    for field in fields_of(settings):
        if dataclasses.is_dataclass(field.kind):
            values[field.name] = from_options(field.kind, options)
        elif hasattr(options, field.name):
            value = getattr(options, field.name)
            values[field.name] = tuple(value) if field.many else value
    return settings(**{**values, **given})


def _value(field: Field) -> dict[str, Any]:
    """What argparse needs to know of an option's value.

    Words are checked by the settings, with one line, and not by argparse, with its usage.
    """
    if field.kind is bool:
        return {"action": "store_true"}
    metavar = _METAVARS[field.kind]
    if isinstance(field.rule, OneOf):
        metavar = f"{{{','.join(field.rule.words)}}}"
    return {"type": field.kind, "metavar": metavar, **({"nargs": "+"} if field.many else {})}


def _text(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"


def _helps(settings: type) -> dict[str, str]:
    """The "Arguments:" of a docstring; `a, b: text` is the help of both."""
    _, _, section = (inspect.getdoc(settings) or "").partition("Arguments:\n")
    helps: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        text = re.sub(r"\s+", " ", text).replace("`", "").rstrip(".")
        helps |= {name.strip(): text for name in names.split(",")}
    return helps
