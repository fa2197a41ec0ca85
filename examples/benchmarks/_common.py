"""What the benchmarks share: clocks, calibration, peak memory, hypernetworks of published sizes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ghn_init import GHN, GHNConfig
from ghn_init.loading import save_checkpoint

T = TypeVar("T")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` is for one thread on a machine that does other work at the same time."""

UNIT_FLOP = 2 * 2048**3
CALIBRATION_BYTES = 1_000_000_000
"""Arithmetic of a calibration unit, a matmul of 2048 x 2048 matrices in float32."""

_SIZES = {"t": (64, 3, 8), "s": (128, 5, 16), "l": (256, 12, 16), "xl": (384, 24, 16)}

FOLDER = Path(tempfile.gettempdir()) / "ghn_init_benchmarks"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if values else math.nan


def timed(function: Callable[[], T], repeat: int, clock: str = "wall") -> tuple[list[float], T]:
    """Seconds of each repetition, and what the last one returned."""
    now, seconds = CLOCKS[clock], []
    for _ in range(repeat):
        _wait_for_gpu()
        start = now()
        result = function()
        _wait_for_gpu()
        seconds.append(now() - start)
    return seconds, result


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def calibration(clock: str, device: str = "cpu", repeat: int = 7) -> dict[str, float]:
    """Seconds of the workloads that figures are compared by.

    `matmul` is one of 2048^3, `copy` one of 1 GB, `read` the sum of its numbers.
    """
    a, b = torch.rand(2, 2048, 2048, device=device)
    timed(lambda: a @ b, 2)
    matmul = median(timed(lambda: a @ b, repeat, clock)[0])
    source, target = torch.ones(2, CALIBRATION_BYTES // 4, device=device)
    copy = median(timed(lambda: target.copy_(source), 3, clock)[0])
    read = median(timed(source.sum, 3, clock)[0])
    return {"matmul": matmul, "copy": copy, "read": read}


def config(size: str) -> GHNConfig:
    """Of the published GHN-3 of that size (t, s, l, xl)."""
    width, layers, heads = _SIZES[size]
    return GHNConfig("ghn3", width, layers, heads, (width, width, 16, 16), 1000)


def checkpoint(size: str, folder: Path = FOLDER) -> Path:
    """A GHN-3 of the published size with random weights, made once: `<folder>/ghn3-<size>...`."""
    path = folder / f"ghn3-{size}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_checkpoint(path, GHN(config(size)).state_dict(), config(size))
    return path


def classifiers() -> list[str]:
    """Every torchvision model of images and classes."""
    from torchvision import models

    return [n for n in models.list_models(module=models) if not n.startswith("quantized_")]


def build(name: str, device: str = "cpu") -> nn.Module:
    """A torchvision model of zeros: its own initialization is skipped."""
    from torchvision import models

    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model: nn.Module = models.get_model(name, weights=None, **slow)
    model = model.to_empty(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()  # memory is only there once it is written to
    return model


# -- memory (Linux)


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def resident() -> int:
    """Bytes in memory now, memory-mapped ones that have been read included."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Start a new measurement of `peak`."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes in memory since `reset_peak`."""
    return _status("VmHWM")


def forget(path: Path) -> None:
    """Drop a file from the system's cache, so that it has to be read from the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_from_disk() -> int:
    """Bytes that this process has had read from a disk, with what the system read ahead."""
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("read_bytes:")).split()[1])


def read_of(path: Path) -> int:
    """Bytes of a memory-mapped file that have been read so far."""
    total, inside = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.split(" ", 1)[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function of the script in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


# -- results


def machine(clock: str) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "clock": clock,
        "page_size": resource.getpagesize(),
    }


def write_json(path: Path | None, content: object) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    cells = [list(header), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join((first, *rest)).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        digits = 4 if abs(value) < 0.1 else 3 if abs(value) < 10 else 1
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    return str(value)
