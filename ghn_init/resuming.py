"""Results of a long computation in a file, so that it can go on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path

Row = TypeVar("Row")


class ResultsFile(Generic[Row]):
    """A JSON file of settings and of rows, to which rows are added as they are computed.

    Arguments:
        path: the file; None: nothing is read or written.
        settings: what decides about all rows. One that only some rows depend on, such as a
            checkpoint, may be left out where it is not needed.
        from_json: a row from its content in the file.
        to_json: the other way round.
        names: of settings and of rows in the file.

    Raises:
        GHNInitError: the file is damaged, or has other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        from_json: Callable[[Any], Row],
        to_json: Callable[[Row], Any],
        names: tuple[str, str] = ("settings", "runs"),
    ) -> None:
        self.rows: list[Row] = []
        self._text = ""  # of the file, as it was read or written last
        self._path = None if path is None else Path(path)
        self._settings, self._to_json, self._names = dict(settings), to_json, names
        if self._path is None or not self._path.exists():
            return
        try:
            self._text = self._path.read_text(encoding="utf-8")
            content = json.loads(self._text)
            then = dict(content[names[0]])
            self.rows = [from_json(row) for row in content[names[1]]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, GHNInitError) as error:
            raise GHNInitError(
                f"{self._path} does not hold such results ({error}). Delete it, or give another "
                "file or folder."
            ) from error
        self._check(then)
        self._settings = {**then, **settings}

    def add(self, row: Row) -> None:
        """Add a row, in the file as well."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            GHNInitError: it cannot be written, or another process has written it meanwhile.
        """
        if self._path is None:
            return
        if self._path.exists() and self._path.read_text(encoding="utf-8") != self._text:
            raise GHNInitError(
                f"another process has changed {self._path} meanwhile: let one at a time write to "
                "it, and start this one again."
            )
        first, second = map(json.dumps, self._names)
        rows = ",\n".join(json.dumps(self._to_json(row)) for row in self.rows)  # one a line
        text = f"{{{first}: {json.dumps(self._settings, indent=1)},\n{second}: [\n{rows}\n]}}\n"
        with atomic_path(self._path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._text = text

    def _check(self, then: Mapping[str, Any]) -> None:
        """Refuse rows that cannot stand beside the new ones."""
        now = json.loads(json.dumps(self._settings))  # a tuple is a list in the file
        changed = [
            f"{name} ({then[name]} then, {value} now)"
            for name, value in now.items()
            if name in then and then[name] != value
        ]
        if changed:
            raise GHNInitError(
                f"{self._path} holds results with other settings: {', '.join(changed)}. Give the "
                "same arguments to go on with them, or another file or folder."
            )
