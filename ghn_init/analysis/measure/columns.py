"""Numbers about models from a file: accuracies to rank by, values to color by."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn_init.errors import GHNInitError

Columns = Mapping[str, Mapping[str, str]]
"""By model, then by column."""


def read_columns(path: str | os.PathLike[str]) -> Columns:
    """Read a table of models.

    Arguments:
        path: a CSV file with a header and the models in its first column; or JSON,
            `{model: {column: value}}` or `{model: value}` (the column is then "value"), whole or
            as one such object a line.

    Raises:
        GHNInitError: the file cannot be read or is nothing of the kind.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return _from_csv(text) if Path(path).suffix.lower() == ".csv" else _from_json(text)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GHNInitError(
            f"cannot read a table of models from {os.fspath(path)!r}: {error}. Give a CSV or JSON "
            "file."
        ) from error


def column(columns: Columns, name: str | None, what: str) -> dict[str, str]:
    """One column, by model; models without it are left out.

    Arguments:
        columns: of a file.
        name: of the column; None for the only one.
        what: the file, for the message.

    Raises:
        GHNInitError: there is no such column, or several where none is named.
    """
    known = list(dict.fromkeys(key for values in columns.values() for key in values))
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        asked = "several columns" if name is None else f"no column {name!r}"
        raise GHNInitError(f"{asked} in {what}: choose one of {', '.join(known)}.")
    return {model: values[name] for model, values in columns.items() if name in values}


def as_numbers(values: Mapping[str, str]) -> dict[str, float]:
    """The values as numbers.

    Raises:
        GHNInitError: one is not.
    """
    numbers = {}
    for model, value in values.items():
        try:
            numbers[model] = float(value)
        except ValueError as error:
            raise GHNInitError(f"{model} has {value!r} where a number is needed.") from error
    return numbers


def _from_csv(text: str) -> Columns:
    reader = csv.DictReader(text.splitlines())
    first, *others = reader.fieldnames or [""]
    return {row[first]: {k: row[k] for k in others if row[k]} for row in reader}


def _from_json(text: str) -> Columns:
    try:
        objects = [json.loads(text)]
    except json.JSONDecodeError:
        objects = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {model: _values(value) for item in objects for model, value in item.items()}


def _values(value: Any) -> dict[str, str]:
    values = value if isinstance(value, dict) else {"value": value}
    return {key: str(item) for key, item in values.items() if item is not None}
