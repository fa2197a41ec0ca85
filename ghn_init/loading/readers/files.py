"""Bytes of a file that is not trusted. Nothing here needs torch."""

from __future__ import annotations

import math
from typing import Protocol

from ghn_init.errors import GHNInitError

_MOST_ELEMENTS = 1 << 48  # of a tensor, sizes of 0 left aside


class Readable(Protocol):
    """What is needed of a file."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def tell(self) -> int: ...
    def read(self, size: int = ..., /) -> bytes: ...


def read_exactly(file: Readable, start: int, size: int) -> bytes:
    """`size` bytes from `start`.

    Raises:
        GHNInitError: the file ends before, or cannot be read.
    """
    try:
        file.seek(start)
        data = file.read(size)
    except OSError as error:
        raise GHNInitError(f"it cannot be read ({error})") from error
    except (ValueError, OverflowError) as error:  # a position that no file has
        raise GHNInitError("damaged: it refers to places outside of the file") from error
    if len(data) != size:
        raise GHNInitError(
            "truncated: the file ends in the middle. Delete it and fetch or copy it again"
        )
    return data


def file_size(file: Readable) -> int:
    return file.seek(0, 2)


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse a shape that nothing can be made of, also where a size of 0 hides the others.

    Raises:
        GHNInitError: the sizes that are not 0 multiply to more than any tensor has.
    """
    if math.prod(n for n in shape if n) > _MOST_ELEMENTS:
        raise GHNInitError(f"damaged: a tensor claims the shape {brief(shape)}")


def brief(numbers: tuple[int, ...]) -> str:
    """Numbers of an untrusted file, short enough for a message."""
    return "x".join(str(n) if n < 10**12 else "(huge)" for n in numbers) or "()"
