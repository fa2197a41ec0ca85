"""The progress bar: quiet for what is short, one line on a terminal, clean lines in a file."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import time

import pytest

from ghn_init import progress
from ghn_init.progress import Progress

LONG = {"method": "ghn3-orth:noise=0,norms=predict", "lr": "0.001", "loss": 2.3456789}


def work(steps: int) -> None:
    with Progress(100, "step", done=100 - steps) as line:
        for _ in range(steps):
            time.sleep(0.02)
            line.step(**LONG)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.1)


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """What a terminal of that width gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        work(60)
        print("after", file=stream)
        text = b""
        while not text.endswith(b"after\r\n"):  # it comes in pieces
            text += os.read(ours, 1 << 16)
    os.close(ours)
    return text.decode()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("columns", [80, 40, 0])
def test_a_terminal_has_one_line_that_never_wraps(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = on_terminal(monkeypatch, columns)
    *states, rest = text.split("\r\n")[0].split("\r")
    assert len(states) > 1
    assert all(len(state) < (columns or 80) for state in [*states, rest])
    assert "100/100" in rest
    assert text.endswith("\r\nafter\r\n")


@pytest.mark.usefixtures("soon")
def test_a_file_has_clean_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.4)
    work(60)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert 2 <= len(lines) <= 5
    assert lines[-1].startswith("100/100 steps [")
    assert "loss=2.35" in lines[-1]
    assert "\r" not in text


def test_what_is_short_or_silent_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work(5)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with Progress(3, "step", silent=True) as line:
        line.step(**LONG)
    assert capsys.readouterr().err == ""


def test_a_message_above_the_bar_does_not_show_it_early(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(3, "step") as line:
        line.write("found", file=sys.stderr)
        line.step()
    assert capsys.readouterr().err == "found\n"
