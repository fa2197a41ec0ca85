"""Results in a file, with which a long computation goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ghn_init import GHNInitError
from ghn_init.resuming import ResultsFile


def opened(path: Path | None, **settings: Any) -> ResultsFile[int]:
    return ResultsFile(path, settings, int, str)


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    file = opened(tmp_path / "x.json", a=1, b=(2, 3))
    file.add(5)
    file.add(6)
    content = json.loads((tmp_path / "x.json").read_text())
    assert content == {"settings": {"a": 1, "b": [2, 3]}, "runs": ["5", "6"]}
    assert opened(tmp_path / "x.json", b=(2, 3), c="new").rows == [5, 6]
    with pytest.raises(GHNInitError, match=r"other settings: b \(\[2, 3\] then, \[2\] now\)"):
        opened(tmp_path / "x.json", b=(2,))


def test_a_setting_that_was_not_needed_stays_in_the_file(tmp_path: Path) -> None:
    opened(tmp_path / "x.json", a=1).add(5)
    opened(tmp_path / "x.json", b=2).add(6)
    with pytest.raises(GHNInitError, match="a \\(1 then, 3 now"):
        opened(tmp_path / "x.json", a=3)


def test_two_processes_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "x.json"), opened(tmp_path / "x.json")
    one.add(5)
    with pytest.raises(GHNInitError, match=r"another process has changed .*x.json"):
        other.add(6)
    one.add(7)
    assert opened(tmp_path / "x.json").rows == [5, 7]


def test_nothing_is_written_without_a_file() -> None:
    file = opened(None)
    file.add(5)
    assert file.rows == [5]
