"""Reads the pickle layouts of checkpoints without ever running what a pickle says.

A pickle is a small program. Python's own reader runs it, and so a file can do whatever its maker
likes. This reader knows only the instructions that build dictionaries, lists, tuples, strings and
numbers; the few functions that a checkpoint names (`torch._utils._rebuild_tensor_v2` and so on)
are replaced by stand-ins of this module, which check their arguments and note *where in the file*
a tensor lies. Nothing is imported, nothing is called, no weight is read: a file of any size is
looked through in a few milliseconds, and its weights can be streamed afterwards.
README.md says why `torch.load(weights_only=True)` is not used.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

import torch

from ghn_init.errors import GHNInitError
from ghn_init.loading.readers.files import Readable, file_size, read_exactly
from ghn_init.loading.readers.pickle_machine import (
    DAMAGED,
    MAX_TEXT,
    STORAGE_TYPES,
    Budget,
    Bytes,
    Cursor,
    Global,
    Globals,
    Machine,
    misused,
)
from ghn_init.loading.readers.stored import CHUNK, Storage, StoredTensor

MAX_RECORDS = 1 << 22  # bytes of a zip file's table of contents
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch < 1.6 begin


def read_joblib(file: Readable) -> object:
    """The object of a joblib pickle (not compressed), its tensors as `StoredTensor`.

    Allowed are `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2` and
    `torch.storage._load_from_bytes`, the last one on a storage that torch itself has saved.

    Raises:
        GHNInitError: the file asks for anything else (the message names it), or is damaged.
    """
    budget = Budget()

    def load_from_bytes(arguments: tuple[object, ...]) -> Storage:
        match arguments:
            case (Bytes() as data,):
                return _read_nested_storage(file, data, budget)
        raise misused("torch.storage._load_from_bytes")

    allowed = _table(
        Global("collections.OrderedDict", _ordered_dict),
        Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        Global("torch.storage._load_from_bytes", load_from_bytes),
    )
    cursor = Cursor(file, 0, file_size(file), budget)
    result = Machine(cursor, allowed).run()
    cursor.expect_end()
    return result


def read_torch_zip(file: Readable) -> object:
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
    cursor = Cursor(file, program.start, program.start + program.size, Budget())
    result = Machine(cursor, _torch_globals(), find_storage).run()
    cursor.expect_end()
    return result


def read_torch_legacy(file: Readable) -> object:
    """The object of a `torch.save` file of torch < 1.6, its tensors as `StoredTensor`.

    Raises:
        GHNInitError: the file asks for anything that a state dict does not need, or is damaged.
    """
    return _read_legacy(Cursor(file, 0, file_size(file), Budget()), _torch_globals())


def _torch_globals() -> Globals:
    return _table(
        Global("collections.OrderedDict", _ordered_dict),
        Global("torch._utils._rebuild_tensor_v2", _rebuild_tensor),
        Global("torch._utils._rebuild_parameter", _rebuild_parameter),
        Global("torch.Size", _size),
        Global("argparse.Namespace", _namespace),
        *map(Global, STORAGE_TYPES),
    )


def _table(*entries: Global) -> Globals:
    return {entry.name: entry for entry in entries}


# The stand-ins.


def _namespace(arguments: tuple[object, ...]) -> dict[str, object]:
    """The options of the authors' trainers, which stand beside the weights; none is needed."""
    if arguments:
        raise misused("argparse.Namespace")
    return {}


def _ordered_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    if arguments:
        raise misused("collections.OrderedDict")
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
    raise misused("torch._utils._rebuild_tensor_v2")


def _rebuild_parameter(arguments: tuple[object, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as data, bool(), hooks) if _is_nothing(hooks):
            return data
    raise misused("torch._utils._rebuild_parameter")


def _size(arguments: tuple[object, ...]) -> tuple[object, ...]:
    match arguments:
        case (tuple() as sizes,):
            return sizes
    raise misused("torch.Size")


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, dict) and not value)


# Storages in the format of torch < 1.6, which joblib files still use for each tensor.


def _read_nested_storage(file: Readable, data: Bytes, budget: Budget) -> Storage:
    """The storage that `_load_from_bytes` would have made of these bytes."""
    start = read_exactly(file, data.start, min(data.size, len(LEGACY_MAGIC)))
    cursor = Cursor(file, data.start, data.start + data.size, budget)
    if start == LEGACY_MAGIC:
        storage = _read_legacy(cursor, _table(*map(Global, STORAGE_TYPES)))
        if isinstance(storage, Storage):
            return storage
    elif start.startswith(b"PK") and data.size <= MAX_TEXT:
        read_torch_zip(io.BytesIO(cursor.take(data.size)))  # to name what it asks for
    else:
        Machine(cursor, {}).run()  # likewise
    raise misused("torch.storage._load_from_bytes")


def _read_legacy(cursor: Cursor, allowed: Globals) -> object:
    """Five pickles (magic number, version, system, object, storage keys), then the storages."""
    storages: dict[str, Storage] = {}

    def announce(dtype: torch.dtype, key: str, numel: int) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise GHNInitError(f"damaged: storage {key[:40]!r} is described twice")
        return storage

    cursor.take(len(LEGACY_MAGIC))
    version, system = Machine(cursor, {}).run(), Machine(cursor, {}).run()
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise GHNInitError("damaged: the header of a torch file makes no sense")
    result = Machine(cursor, allowed, announce).run()
    keys = Machine(cursor, {}).run()
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

    def check(self, file: Readable) -> None:
        crc = 0
        for done in range(0, self.size, CHUNK):
            piece = read_exactly(file, self.start + done, min(CHUNK, self.size - done))
            crc = zlib.crc32(piece, crc)
        if crc != self.crc:
            raise GHNInitError("damaged: a checksum in it is wrong. Fetch or copy it again")


class _Sparing:
    """A file for `zipfile`, which reads the table of contents at once, however large it is."""

    def __init__(self, file: Readable) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if size > MAX_RECORDS:
            raise GHNInitError("refused: the table of contents of the zip file is absurdly large")
        return self._read(min(size, MAX_RECORDS) if size >= 0 else MAX_RECORDS)


def _zip_records(file: Readable) -> dict[str, _Record]:
    """Name -> record. Refuses everything that torch does not write: compression, overlaps, ..."""
    try:
        with zipfile.ZipFile(cast(BinaryIO, _Sparing(file))) as archive:
            entries = archive.infolist()
            has_comment = bool(archive.comment)
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGED) as error:
        raise GHNInitError(f"damaged: it is no whole zip file ({error})") from error
    # torch writes no comment: the end record is the end of the file.
    if has_comment or read_exactly(file, file_size(file) - 22, 4) != b"PK\x05\x06":
        raise GHNInitError("damaged: there is something behind the end of its data")
    records: dict[str, _Record] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not plain or entry.compress_size != entry.file_size:
            raise GHNInitError("refused: it is a zip file with compressed or encrypted records")
        start = _record_start(file, entry.header_offset)
        if not records and entry.header_offset:
            raise GHNInitError("damaged: there is something before the beginning of its data")
        if entry.header_offset < end or entry.filename in records:
            raise GHNInitError("refused: it is a zip file with overlapping or double records")
        records[entry.filename] = _Record(start, entry.file_size, entry.CRC)
        end = start + entry.file_size
    if end > file_size(file):
        raise GHNInitError("truncated: the file ends in the middle. Fetch or copy it again")
    return records


def _record_start(file: Readable, header: int) -> int:
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
