"""A machine for pickles that can build data and do nothing else.

It knows only the instructions for dictionaries, lists, tuples, strings and numbers, and the
functions that it is given by name; byte strings stay in the file. What it may do is limited: steps,
and bytes of text.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.stored import Storage, read_exactly

MAX_STEPS = 500_000  # instructions of one file; the largest published GHN needs about 10,000
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

    def __init__(self, file: BinaryIO, position: int, end: int, budget: Budget) -> None:
        self.file, self.position, self.end, self.budget = file, position, end, budget

    def skip(self, size: int) -> Bytes:
        if size > self.end - self.position:
            raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")
        span = Bytes(self.position, size)
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
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise self._unknown(code)
                instruction(self)
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

    def check_frame(self) -> None:
        size = self.cursor.number(8)
        if size > self.cursor.end - self.cursor.position:
            raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")

    def check_protocol(self) -> None:
        if self.cursor.number(1) > 5:
            raise GHNInitError("it is written in a pickle protocol that is not known")


_INSTRUCTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine.check_protocol,
    b"\x95": Machine.check_frame,
    b"N": Machine.push_none,
    b"\x88": Machine.push_true,
    b"\x89": Machine.push_false,
    b"K": Machine.push_byte,
    b"M": Machine.push_short,
    b"J": Machine.push_int,
    b"\x8a": Machine.push_long,
    b"G": Machine.push_float,
    b"\x8c": lambda m: m.push_text(1),
    b"X": lambda m: m.push_text(4),
    b"\x8d": lambda m: m.push_text(8),
    b"C": lambda m: m.push_bytes(1),
    b"B": lambda m: m.push_bytes(4),
    b"\x8e": lambda m: m.push_bytes(8),
    b"}": Machine.push_dict,
    b"]": Machine.push_list,
    b")": Machine.push_empty_tuple,
    b"(": Machine.mark,
    b"t": Machine.make_tuple,
    b"\x85": lambda m: m.make_short_tuple(1),
    b"\x86": lambda m: m.make_short_tuple(2),
    b"\x87": lambda m: m.make_short_tuple(3),
    b"s": Machine.set_item,
    b"u": Machine.set_items,
    b"a": Machine.append,
    b"e": Machine.append_all,
    b"q": lambda m: m.remember(1),
    b"r": lambda m: m.remember(4),
    b"\x94": Machine.remember_next,
    b"h": lambda m: m.recall(1),
    b"j": lambda m: m.recall(4),
    b"c": Machine.find_on_line,
    b"\x93": Machine.find_on_stack,
    b"R": Machine.call,
    b"b": Machine.set_attributes,
    b"Q": Machine.find_persistent,
}
