"""Reads the pickle layouts of checkpoints without ever running what a pickle says.

A pickle is a small program. Python's own reader runs it, and so a file can do whatever its maker
likes. This reader knows only the instructions that build dictionaries, lists, tuples, strings and
numbers; the few functions that a checkpoint names (`torch._utils._rebuild_tensor_v2` and so on)
are replaced by stand-ins of this module, which check their arguments and note *where in the file*
a tensor lies. Nothing is imported, nothing is called, no weight is read: a file of any size is
looked through in a few milliseconds, and its weights can be streamed afterwards.

`torch.load(weights_only=True)` is not used: it makes objects as large as a file asks for, keeps
everything in memory or mapped, and does not know the joblib layout.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ._errors import GHNInitError
from ._stored import CHUNK, Storage, StoredTensor, file_size, read_exactly

MAX_STEPS = 500_000  # instructions of one file; the largest published GHN needs about 10,000
MAX_TEXT = 1 << 24  # bytes of all strings and numbers of one file together
MAX_RECORDS = 1 << 22  # bytes of a zip file's table of contents
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch < 1.6 begin

_STORAGE_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

_DAMAGED = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    struct.error,
)  # what a nonsensical pickle can raise in the machine below


@dataclass(frozen=True)
class _Bytes:
    """A byte string of the pickle, left in the file."""

    start: int
    size: int


@dataclass(frozen=True)
class _Global:
    """Stands for an allowed function or class; `call` is None for one that may only be named."""

    name: str
    call: Callable[[tuple[object, ...]], object] | None = None


_Globals = Mapping[str, _Global]


def read_joblib(file: BinaryIO) -> object:
    """The object of a joblib pickle (not compressed), its tensors as `StoredTensor`.

    Allowed are `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2` and
    `torch.storage._load_from_bytes`, the last one on a storage that torch itself has saved.

    Raises:
        GHNInitError: the file asks for anything else (the message names it), or is damaged.
    """
    budget = _Budget()

    def load_from_bytes(arguments: tuple[object, ...]) -> Storage:
        match arguments:
            case (_Bytes() as data,):
                return _read_nested_storage(file, data, budget)
        raise _misused("torch.storage._load_from_bytes")

    allowed = _table(
        _Global("collections.OrderedDict", _ordered_dict),
        _Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _Global("torch.storage._load_from_bytes", load_from_bytes),
    )
    cursor = _Cursor(file, 0, file_size(file), budget)
    result = _Machine(cursor, allowed).run()
    cursor.expect_end()
    return result


def read_torch_zip(file: BinaryIO) -> object:
    """The object of a `torch.save` file (torch >= 1.6), its tensors as `StoredTensor`.

    Raises:
        GHNInitError: the file asks for anything that a state dict does not need, contains
            compressed or overlapping records, or is damaged (checksums are compared).
    """
    records = _zip_records(file)
    root = _archive_root(records)
    storages: dict[str, Storage] = {}

    def find_storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
        record = records.get(f"{root}/data/{key}")
        if record is None or record.size != numel * dtype.itemsize:
            raise GHNInitError(f"damaged: the record of storage {key[:40]!r} is missing or cut")
        if key not in storages:
            record.check(file)
            storages[key] = Storage(dtype, numel, record.start)
        if storages[key].dtype != dtype:
            raise GHNInitError(f"damaged: storage {key[:40]!r} is given two types")
        return storages[key]

    order = records.get(f"{root}/byteorder")
    if order is not None and read_exactly(file, order.start, min(order.size, 16)) != b"little":
        raise GHNInitError("its numbers are not little-endian: save it again on such a machine")
    program = records[f"{root}/data.pkl"]
    program.check(file)
    cursor = _Cursor(file, program.start, program.start + program.size, _Budget())
    result = _Machine(cursor, _torch_globals(), find_storage).run()
    cursor.expect_end()
    return result


def read_torch_legacy(file: BinaryIO) -> object:
    """The object of a `torch.save` file of torch < 1.6, its tensors as `StoredTensor`.

    Raises:
        GHNInitError: the file asks for anything that a state dict does not need, or is damaged.
    """
    return _read_legacy(_Cursor(file, 0, file_size(file), _Budget()), _torch_globals())


def _torch_globals() -> _Globals:
    return _table(
        _Global("collections.OrderedDict", _ordered_dict),
        _Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        _Global("torch._utils._rebuild_parameter", _rebuild_parameter),
        _Global("torch.Size", _size),
        *map(_Global, _STORAGE_TYPES),
    )


def _table(*entries: _Global) -> _Globals:
    return {entry.name: entry for entry in entries}


# The stand-ins.


def _ordered_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    if arguments:
        raise _misused("collections.OrderedDict")
    return {}


def _rebuild_tensor(arguments: tuple[object, ...]) -> StoredTensor:
    match arguments:
        case (
            Storage() as storage,
            int() as offset,
            tuple() as shape,
            tuple() as stride,
            bool(),
            hooks,
            *rest,
        ) if _is_nothing(hooks) and len(rest) <= 1 and all(map(_is_nothing, rest)):
            # StoredTensor checks the numbers.
            return StoredTensor(storage, offset, shape, stride)
    raise _misused("torch._utils._rebuild_tensor_v2")


def _rebuild_parameter(arguments: tuple[object, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as data, bool(), hooks) if _is_nothing(hooks):
            return data
    raise _misused("torch._utils._rebuild_parameter")


def _size(arguments: tuple[object, ...]) -> tuple[object, ...]:
    match arguments:
        case (tuple() as sizes,):
            return sizes
    raise _misused("torch.Size")


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def _misused(name: str) -> GHNInitError:
    return GHNInitError(f"refused: it uses {name} in a way that no checkpoint does")


# Storages in the format of torch < 1.6, which joblib files still use for each tensor.


def _read_nested_storage(file: BinaryIO, data: _Bytes, budget: _Budget) -> Storage:
    """The storage that `_load_from_bytes` would have made of these bytes."""
    start = read_exactly(file, data.start, min(data.size, len(LEGACY_MAGIC)))
    cursor = _Cursor(file, data.start, data.start + data.size, budget)
    if start == LEGACY_MAGIC:
        storage = _read_legacy(cursor, _table(*map(_Global, _STORAGE_TYPES)))
        if isinstance(storage, Storage):
            return storage
    elif start.startswith(b"PK") and data.size <= MAX_TEXT:
        read_torch_zip(io.BytesIO(cursor.take(data.size)))  # to name what it asks for
    else:
        _Machine(cursor, {}).run()  # likewise
    raise _misused("torch.storage._load_from_bytes")


def _read_legacy(cursor: _Cursor, allowed: _Globals) -> object:
    """Five pickles (magic number, version, system, object, storage keys), then the storages."""
    storages: dict[str, Storage] = {}

    def announce(dtype: torch.dtype, key: str, numel: int) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise GHNInitError(f"damaged: storage {key[:40]!r} is described twice")
        return storage

    cursor.take(len(LEGACY_MAGIC))
    version, system = _Machine(cursor, {}).run(), _Machine(cursor, {}).run()
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise GHNInitError("damaged: the header of a torch file makes no sense")
    result = _Machine(cursor, allowed, announce).run()
    keys = _Machine(cursor, {}).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise GHNInitError("damaged: the list of its storages makes no sense")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise GHNInitError("damaged: the list of storages is not the one that the tensors need")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(cursor.take(8), "little") != storage.numel:
            raise GHNInitError(f"damaged: storage {key[:40]!r} has not the size it is said to have")
        storage.start = cursor.skip(storage.nbytes).start
    cursor.expect_end()
    return result


# The zip container of torch >= 1.6.


@dataclass(frozen=True)
class _Record:
    """An uncompressed file in a zip file, where it lies, and its checksum."""

    start: int
    size: int
    crc: int

    def check(self, file: BinaryIO) -> None:
        crc = 0
        for done in range(0, self.size, CHUNK):
            piece = read_exactly(file, self.start + done, min(CHUNK, self.size - done))
            crc = zlib.crc32(piece, crc)
        if crc != self.crc:
            raise GHNInitError("damaged: a checksum in it is wrong. Fetch or copy it again")


def _zip_records(file: BinaryIO) -> dict[str, _Record]:
    """Name -> record. Refuses everything that torch does not write: compression, overlaps, ..."""
    _check_zip_end(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, *_DAMAGED) as error:
        raise GHNInitError(f"damaged: it is no whole zip file ({error})") from error
    records: dict[str, _Record] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not plain or entry.compress_size != entry.file_size:
            raise GHNInitError("refused: it is a zip file with compressed or encrypted records")
        start = _record_start(file, entry.header_offset)
        if entry.header_offset < end or entry.filename in records:
            raise GHNInitError("refused: it is a zip file with overlapping or double records")
        records[entry.filename] = _Record(start, entry.file_size, entry.CRC)
        end = start + entry.file_size
    if end > file_size(file):
        raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")
    return records


def _check_zip_end(file: BinaryIO) -> None:
    """Bounds the table of contents before Python's zipfile reads it into memory.

    torch writes no archive comment, so the end record is the last 22 bytes, and a zip64 locator
    the 20 before; zipfile looks in these places first.
    """
    size = file_size(file)
    tail = read_exactly(file, max(0, size - 42), min(size, 42))
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise GHNInitError("truncated: the end of a zip file is missing. Fetch or copy it again")
    table = int.from_bytes(end[12:16], "little")
    if len(tail) == 42 and tail[:4] == b"PK\x06\x07":
        where = int.from_bytes(tail[8:16], "little")
        if where + 56 > size:
            raise GHNInitError("damaged: it is no whole zip file")
        table = max(
            table if table < 0xFFFFFFFF else 0,
            int.from_bytes(read_exactly(file, where + 40, 8), "little"),
            # zipfile may look for that record right before the locator instead
            int.from_bytes(read_exactly(file, max(0, size - 98) + 40, 8), "little"),
        )
    if table > MAX_RECORDS:
        raise GHNInitError("refused: the table of contents of the zip file is absurdly large")


def _record_start(file: BinaryIO, header: int) -> int:
    """Where the data of the record with this local header begins."""
    local = read_exactly(file, header, 30)
    if local[:4] != b"PK\x03\x04":
        raise GHNInitError("damaged: a record of the zip file has no header")
    name, extra = struct.unpack("<HH", local[26:30])
    return int(header + 30 + name + extra)


def _archive_root(records: Mapping[str, _Record]) -> str:
    """The folder that everything lies in: torch names it after the file."""
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise GHNInitError("it is a zip file, but not one that torch.save has written")
    if f"{roots[0]}/constants.pkl" in records:
        raise GHNInitError("it is a TorchScript model, not a checkpoint (a state dict)")
    return roots[0]


# The machine.


@dataclass
class _Budget:
    """What one file may still use; shared by all the pickles in it."""

    steps: int = MAX_STEPS
    text: int = MAX_TEXT

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise GHNInitError("refused: it is absurdly complicated for a checkpoint")

    def read(self, size: int) -> None:
        self.text -= size
        if self.text < 0:
            raise GHNInitError("refused: it holds absurdly much text for a checkpoint")


class _Cursor:
    """Reads forward in the bytes `position` to `end` of a file, never beyond."""

    def __init__(self, file: BinaryIO, position: int, end: int, budget: _Budget) -> None:
        self.file, self.position, self.end, self.budget = file, position, end, budget

    def skip(self, size: int) -> _Bytes:
        if size > self.end - self.position:
            raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")
        span = _Bytes(self.position, size)
        self.position += size
        return span

    def take(self, size: int) -> bytes:
        span = self.skip(size)
        self.budget.read(size)
        return read_exactly(self.file, span.start, size)

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """The text up to the next line feed."""
        window = read_exactly(self.file, self.position, min(256, self.end - self.position))
        size = window.index(b"\n")
        return self.take(size + 1)[:-1].decode()

    def expect_end(self) -> None:
        if self.position != self.end:
            raise GHNInitError("damaged: there is something behind the end of its data")


class _Machine:
    """Runs the instructions of one pickle on a stack, as far as a checkpoint needs them."""

    def __init__(
        self,
        cursor: _Cursor,
        allowed: _Globals,
        find_storage: Callable[[torch.dtype, str, int], Storage] | None = None,
    ) -> None:
        self.cursor = cursor
        self.allowed = allowed
        self.find_storage = find_storage
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """The object that the pickle describes; the cursor stands behind it afterwards."""
        try:
            while (code := self.cursor.take(1)) != b".":
                self.cursor.budget.step()
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise self._unknown(code)
                instruction(self)
            (result,) = self.stack
        except _DAMAGED as error:
            raise GHNInitError(
                f"damaged: the pickle in it makes no sense near byte {self.cursor.position}"
            ) from error
        return result

    def _unknown(self, code: bytes) -> GHNInitError:
        if code == b"i":  # INST names a class and makes an object of it
            return self._refused(f"{self.cursor.line()}.{self.cursor.line()}")
        names = {op.code: op.name for op in pickletools.opcodes}
        name = names.get(code.decode("latin-1"), f"0x{code.hex()}")
        return GHNInitError(
            f"refused: it contains the pickle instruction {name} at byte "
            f"{self.cursor.position - 1}, which no checkpoint needs. Nothing was run"
        )

    def _refused(self, name: str) -> GHNInitError:
        return GHNInitError(
            f"refused: it asks for {name[:120]!r}, which no checkpoint needs and which could run "
            "anything on this machine. Nothing was run. Get the file from a source you trust"
        )

    # Values.

    def push_none(self) -> None:
        self.stack.append(None)

    def push_true(self) -> None:
        self.stack.append(True)

    def push_false(self) -> None:
        self.stack.append(False)

    def push_byte(self) -> None:
        self.stack.append(self.cursor.number(1))

    def push_short(self) -> None:
        self.stack.append(self.cursor.number(2))

    def push_int(self) -> None:
        self.stack.append(self.cursor.number(4, signed=True))

    def push_long(self) -> None:
        self.stack.append(self.cursor.number(self.cursor.number(1), signed=True))

    def push_float(self) -> None:
        self.stack.append(struct.unpack(">d", self.cursor.take(8))[0])

    def push_text(self, width: int) -> None:
        self.stack.append(self.cursor.take(self.cursor.number(width)).decode())

    def push_bytes(self, width: int) -> None:
        self.stack.append(self.cursor.skip(self.cursor.number(width)))

    def push_dict(self) -> None:
        self.stack.append({})

    def push_list(self) -> None:
        self.stack.append([])

    def push_empty_tuple(self) -> None:
        self.stack.append(())

    # Containers.

    def pop(self) -> object:
        """The top of the stack, down to the last mark at most."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("nothing above the mark")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def make_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def make_short_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._store([key, value])

    def set_items(self) -> None:
        self._store(self.pop_to_mark())

    def _store(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are never needed, and hashing nested tuples can take forever.
            if not isinstance(key, str | int):
                raise TypeError("a key that is neither a string nor a number")
            target[key] = value

    def append(self) -> None:
        self._extend([self.pop()])

    def append_all(self) -> None:
        self._extend(self.pop_to_mark())

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for something that is no list")
        target.extend(items)

    # Memo.

    def remember(self, width: int) -> None:
        self.memo[self.cursor.number(width)] = self.stack[-1]

    def remember_next(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def recall(self, width: int) -> None:
        self.stack.append(self.memo[self.cursor.number(width)])

    # Names, calls, storages.

    def find_on_line(self) -> None:
        self._find(self.cursor.line(), self.cursor.line())

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no string")
        self._find(module, name)

    def _find(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise self._refused(full)
        self.stack.append(self.allowed[full])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no function")
        if function.call is None:
            raise _misused(function.name)
        self.stack.append(function.call(arguments))

    def set_attributes(self) -> None:
        """Attributes of a dictionary (`_metadata`, version numbers of layers): not needed."""
        attributes = self.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(attributes, dict):
            raise GHNInitError("refused: it sets attributes of something that is no dictionary")

    def find_persistent(self) -> None:
        match self.pop():
            case (
                "storage",
                _Global(name),
                str() as key,
                str(),
                int() as numel,
                *view,
            ) if (
                self.find_storage is not None
                and name in _STORAGE_TYPES
                and type(numel) is int
                and numel >= 0
                and view in ([], [None])
            ):
                self.stack.append(self.find_storage(_STORAGE_TYPES[name], key, numel))
            case _:
                raise GHNInitError("refused: it refers to data in a way that no checkpoint does")

    def check_frame(self) -> None:
        size = self.cursor.number(8)
        if size > self.cursor.end - self.cursor.position:
            raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")

    def check_protocol(self) -> None:
        if self.cursor.number(1) > 5:
            raise GHNInitError("it is written in a pickle protocol that is not known")


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.check_protocol,
    b"\x95": _Machine.check_frame,
    b"N": _Machine.push_none,
    b"\x88": _Machine.push_true,
    b"\x89": _Machine.push_false,
    b"K": _Machine.push_byte,
    b"M": _Machine.push_short,
    b"J": _Machine.push_int,
    b"\x8a": _Machine.push_long,
    b"G": _Machine.push_float,
    b"\x8c": lambda m: m.push_text(1),
    b"X": lambda m: m.push_text(4),
    b"\x8d": lambda m: m.push_text(8),
    b"C": lambda m: m.push_bytes(1),
    b"B": lambda m: m.push_bytes(4),
    b"\x8e": lambda m: m.push_bytes(8),
    b"}": _Machine.push_dict,
    b"]": _Machine.push_list,
    b")": _Machine.push_empty_tuple,
    b"(": _Machine.mark,
    b"t": _Machine.make_tuple,
    b"\x85": lambda m: m.make_short_tuple(1),
    b"\x86": lambda m: m.make_short_tuple(2),
    b"\x87": lambda m: m.make_short_tuple(3),
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"a": _Machine.append,
    b"e": _Machine.append_all,
    b"q": lambda m: m.remember(1),
    b"r": lambda m: m.remember(4),
    b"\x94": _Machine.remember_next,
    b"h": lambda m: m.recall(1),
    b"j": lambda m: m.recall(4),
    b"c": _Machine.find_on_line,
    b"\x93": _Machine.find_on_stack,
    b"R": _Machine.call,
    b"b": _Machine.set_attributes,
    b"Q": _Machine.find_persistent,
}
