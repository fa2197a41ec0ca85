"""A machine for pickles that can build data and do nothing else.

It knows only the instructions for dictionaries, lists, tuples, strings and numbers, and the
functions that it is given by name; byte strings stay in the file. What it may do is limited: steps,
and bytes of text. `pickletools.genops` would read the byte strings, which are the weights; what
else was weighed says README.md.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable, read_exactly
from ghn_init.loading.readers.stored import Storage

MAX_STEPS = 500_000  # instructions of one file; the largest published GHN needs about 10,000
_WINDOW = 1 << 9  # bytes
_LARGEST_KEY = 1 << 60  # hashes are taken modulo 2^61 - 1
MAX_TEXT = 1 << 24  # bytes of all strings and numbers of one file together

STORAGE_TYPES = {
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

DAMAGED = (
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    struct.error,
)  # what a nonsensical pickle can raise in the machine below


@dataclass(frozen=True)
class Bytes:
    """A byte string of the pickle, left in the file."""

    start: int
    size: int


@dataclass(frozen=True)
class Global:
    """Stands for an allowed function or class; `call` is None for one that may only be named."""

    name: str
    call: Callable[[tuple[object, ...]], object] | None = None


Globals = Mapping[str, Global]


def misused(name: str) -> GHNInitError:
    return GHNInitError(f"refused: it uses {name} in a way that no checkpoint does")


@dataclass
class Budget:
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


class Cursor:
    """Reads forward in the bytes `position` to `end` of a file, never beyond."""

    def __init__(self, file: Readable, position: int, end: int, budget: Budget) -> None:
        self.file, self.position, self.end, self.budget = file, position, end, budget
        self._window, self._window_start = b"", 0  # most pieces are a few bytes: read many at once

    def expect(self, size: int) -> None:
        """Raises unless `size` more bytes are there."""
        if size > self.end - self.position:
            raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")

    def skip(self, size: int) -> Bytes:
        self.expect(size)
        span = Bytes(self.position, size)
        self.position += size
        return span

    def take(self, size: int) -> bytes:
        span = self.skip(size)
        self.budget.read(size)
        start = span.start - self._window_start
        if not 0 <= start <= start + size <= len(self._window):
            wanted = min(max(size, _WINDOW), self.end - span.start)
            self._window = read_exactly(self.file, span.start, wanted)
            self._window_start, start = span.start, 0
        return self._window[start : start + size]

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


class Machine:
    """Runs the instructions of one pickle on a stack, as far as a checkpoint needs them."""

    def __init__(
        self,
        cursor: Cursor,
        allowed: Globals,
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
                if code in _VALUES:
                    self.stack.append(_VALUES[code](self.cursor))
                elif code in _INSTRUCTIONS:
                    _INSTRUCTIONS[code](self)
                else:
                    raise self._unknown(code)
            (result,) = self.stack
        except DAMAGED as error:
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

    def make_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are never needed. Hashing nested tuples can take forever, and so can
            # finding a place among large numbers that all hash alike.
            if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < _LARGEST_KEY):
                raise TypeError("a key that is neither a string nor a number of modest size")
            target[key] = value

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for something that is no list")
        target.extend(items)

    def remember(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no string")
        self.find(module, name)

    def find(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise self._refused(full)
        self.stack.append(self.allowed[full])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no function")
        if function.call is None:
            raise misused(function.name)
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
                Global(name),
                str() as key,
                str(),
                int() as numel,
                *view,
            ) if (
                self.find_storage is not None
                and name in STORAGE_TYPES
                and type(numel) is int
                and numel >= 0
                and view in ([], [None])
            ):
                self.stack.append(self.find_storage(STORAGE_TYPES[name], key, numel))
            case _:
                raise GHNInitError("refused: it refers to data in a way that no checkpoint does")


def _frame(machine: Machine) -> None:
    """A frame announces how many bytes follow; they are read one instruction at a time."""
    machine.cursor.expect(machine.cursor.number(8))


def _protocol(machine: Machine) -> None:
    if machine.cursor.number(1) > 5:
        raise GHNInitError("it is written in a pickle protocol that is not known")


_VALUES: dict[bytes, Callable[[Cursor], object]] = {
    b"N": lambda c: None,
    b"\x88": lambda c: True,
    b"\x89": lambda c: False,
    b"K": lambda c: c.number(1),
    b"M": lambda c: c.number(2),
    b"J": lambda c: c.number(4, signed=True),
    b"\x8a": lambda c: c.number(c.number(1), signed=True),
    b"G": lambda c: struct.unpack(">d", c.take(8))[0],
    b"\x8c": lambda c: c.take(c.number(1)).decode(),
    b"X": lambda c: c.take(c.number(4)).decode(),
    b"\x8d": lambda c: c.take(c.number(8)).decode(),
    b"C": lambda c: c.skip(c.number(1)),
    b"B": lambda c: c.skip(c.number(4)),
    b"\x8e": lambda c: c.skip(c.number(8)),
    b"}": lambda c: {},
    b"]": lambda c: [],
    b")": lambda c: (),
}
"""Instructions that push a value, which may stand behind them in the file."""

_INSTRUCTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"t": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.make_tuple(1),
    b"\x86": lambda m: m.make_tuple(2),
    b"\x87": lambda m: m.make_tuple(3),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"q": lambda m: m.remember(m.cursor.number(1)),
    b"r": lambda m: m.remember(m.cursor.number(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.stack.append(m.memo[m.cursor.number(1)]),
    b"j": lambda m: m.stack.append(m.memo[m.cursor.number(4)]),
    b"c": lambda m: m.find(m.cursor.line(), m.cursor.line()),
    b"\x93": Machine.find_on_stack,
    b"R": Machine.call,
    b"\x81": Machine.call,  # NEWOBJ: of a class
    b"b": Machine.set_attributes,
    b"Q": Machine.find_persistent,
}
"""All others, as far as a checkpoint needs them."""
