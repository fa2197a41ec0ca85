"""Files that somebody may write to while they are read: how it is noticed."""

from __future__ import annotations

import hashlib
import os
import time
from typing import BinaryIO

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.stored import CHUNK

_BLOCK = 1 << 14  # bytes: about as long as the runs in which conversions read


Stamp = tuple[int, int, int, int]
"""Marks by which a file is recognized as unchanged: inode, size, times of two kinds of change."""


def stamp(file: BinaryIO) -> Stamp:
    """The marks of an open file."""
    return stamp_of(os.fstat(file.fileno()))


def stamp_of(status: os.stat_result) -> Stamp:
    """The marks in what the system says of a file."""
    # The change time cannot be set back by hand, and an inode is another file after a rename.
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def settle(marks: Stamp) -> None:
    """Waits until a change to the file would show in its marks, if it was written just now.

    File systems stamp with a coarse clock: two changes within one of its ticks look the same.
    """
    if time.time_ns() - max(marks[2:]) < 50_000_000:
        time.sleep(0.05)


def expect_unchanged(file: BinaryIO, marks: Stamp) -> None:
    """Raises if an open file has other marks than before.

    Raises:
        GHNInitError: it has.
    """
    if stamp(file) != marks:
        raise _changed()


def _changed() -> GHNInitError:
    return GHNInitError("it was changed while it was read. Try again")


class Unchanging:
    """A file that has been read through once, and cannot change afterwards without being noticed.

    The checksum of a file says nothing about what is read later: somebody may write to it in
    between, and what is converted would be a mixture under the checksum of the first. So each block
    has a checksum, too, and is compared with it when it is read again.

    Arguments:
        file: it is read from the start to the end.

    Attributes:
        sha256: checksum of the whole, 64 hexadecimal digits.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._position = file, 0
        self._blocks: list[bytes] = []
        self._window, self._window_start = b"", 0  # what was read last
        whole, self._size = hashlib.sha256(), 0
        file.seek(0)
        while piece := file.read(CHUNK):
            whole.update(piece)
            self._blocks += _checksums(piece)
            self._size += len(piece)
        self.sha256 = whole.hexdigest()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a place counted from the start (0), from here (1) or from the end (2)."""
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or what there is.

        Raises:
            GHNInitError: they are no longer what they were.
        """
        start = self._position
        end = self._size if size < 0 else min(start + size, self._size)
        if start >= end:
            return b""
        if not self._window_start <= start <= end <= self._window_start + len(self._window):
            self._fill_window(start // _BLOCK, -(-end // _BLOCK))
        self._position = end
        return self._window[start - self._window_start : end - self._window_start]

    def _fill_window(self, first: int, last: int) -> None:
        self._file.seek(first * _BLOCK)
        data = self._file.read(min(last * _BLOCK, self._size) - first * _BLOCK)
        if _checksums(data) != self._blocks[first:last]:
            raise _changed()
        self._window, self._window_start = data, first * _BLOCK


def _checksums(data: bytes) -> list[bytes]:
    view = memoryview(data)
    starts = range(0, len(data), _BLOCK)
    return [hashlib.sha256(view[start : start + _BLOCK]).digest() for start in starts]
