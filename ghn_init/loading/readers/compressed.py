"""Compressed joblib files, decompressed to a temporary file before anything looks into them."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, Protocol, cast

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.stored import CHUNK, file_size, read_exactly


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Inflate:
    """zlib's decompressor (zlib and gzip) with the interface of the two others."""

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DAMAGED = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)
_LZMA_MEMORY = 1 << 27  # bytes; xz's strongest preset needs half of it
_COMPRESSIONS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": lambda: _Inflate(31),
    b"\x78\x01": lambda: _Inflate(15),
    b"\x78\x5e": lambda: _Inflate(15),
    b"\x78\x9c": lambda: _Inflate(15),
    b"\x78\xda": lambda: _Inflate(15),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    b"\x5d\0\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY),
}


@contextlib.contextmanager
def decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    """A compressed joblib file as an anonymous temporary file, any other file as it is.

    Raises:
        GHNInitError: the compressed data are damaged, would become absurdly large, or find no room
            in the temporary folder.
    """
    start = read_exactly(file, 0, min(9, file_size(file)))
    found = [make for magic, make in _COMPRESSIONS.items() if start.startswith(magic)]
    if not found or start[3:9] == b"\0\0\0\0\0{":  # a safetensors file can begin like that, too
        yield file
        return
    with tempfile.TemporaryFile(prefix="ghn_init-") as out:
        _decompress(file, found[0](), out)
        yield cast(BinaryIO, out)


def _decompress(file: BinaryIO, decompressor: _Decompressor, out: IO[bytes]) -> None:
    # Weights hardly compress; 20-fold is generous, and small files of zeros may do better.
    allowed = max(1 << 26, 20 * file_size(file))
    try:
        for piece in _inflated(file, decompressor):
            out.write(piece)
            if out.tell() > allowed:
                raise GHNInitError("refused: it decompresses to absurdly many bytes (a bomb)")
        out.flush()
    except OSError as error:
        raise GHNInitError(
            f"there is no room in {tempfile.gettempdir()} to decompress it ({error.strerror}). Set "
            "TMPDIR to another folder"
        ) from error
    if read_exactly(cast(BinaryIO, out), 0, min(1, out.tell())) != b"\x80":
        raise GHNInitError("it is compressed, but it is no joblib file")


def _inflated(file: BinaryIO, decompressor: _Decompressor) -> Iterator[bytes]:
    """The decompressed bytes, a few MB at a time."""
    size, position, data = file_size(file), 0, b""
    while not decompressor.eof:
        try:
            piece = decompressor.decompress(data, CHUNK)
        except _DAMAGED as error:
            raise GHNInitError(f"damaged: it cannot be decompressed ({error})") from error
        yield piece
        data = b""
        if len(piece) < CHUNK and not decompressor.eof:
            if position == size:
                raise GHNInitError("truncated: the file ends in the middle. Fetch it again")
            data = read_exactly(file, position, min(CHUNK, size - position))
            position += len(data)
    if decompressor.unused_data or position != size:
        raise GHNInitError("damaged: there is something behind the end of its data")
