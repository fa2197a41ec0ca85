"""The tensors of a safetensors file: what its header lists, for torch."""

from __future__ import annotations

import torch

from ghn_init.loading.readers.files import Readable
from ghn_init.loading.readers.headers import read_entries
from ghn_init.loading.readers.stored import Storage, StoredTensor, row_major

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}


def read_safetensors(file: Readable) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file, none of them read, and its metadata.

    Raises:
        GHNInitError: as `read_entries`.
    """
    entries, metadata = read_entries(file)
    tensors: dict[str, StoredTensor] = {}
    for entry in entries:
        dtype = DTYPES[entry.kind]
        storage = Storage(dtype, entry.nbytes // dtype.itemsize, entry.start)
        tensors[entry.name] = StoredTensor(storage, 0, entry.shape, row_major(entry.shape))
    return tensors, metadata
