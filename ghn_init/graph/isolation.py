"""What our passes must not touch, or be touched by: the model, random numbers, settings."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import sys
import threading
from collections.abc import Collection, Iterator

import torch
from torch import nn


def set_modes(model: nn.Module, training: bool, evaluated: Collection[str] = ()) -> None:
    """Set the modules' modes; those of the given names are in evaluation mode anyway.

    `train()` is not called, as some modules override it.
    """
    for name, module in model.named_modules():
        module.__dict__["training"] = training and name not in evaluated


_PROCESS = threading.RLock()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep other threads of ours from settings of the whole process that are changed for a while.

    Two threads that save and restore one setting side by side leave it changed: the second one
    saves what the first one has set.
    """
    with _PROCESS:
        yield


@contextlib.contextmanager
def isolated_rng(seed: int = 0) -> Iterator[None]:
    """Make the same random choices every time (some forwards flip coins), and restore."""
    with one_at_a_time(), _restored_generators():
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed % 2**32)
        yield


@contextlib.contextmanager
def _restored_generators() -> Iterator[None]:
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def plain_modes() -> Iterator[None]:
    """Keep the caller's autocast and inference mode from numbers, and from what is dispatched."""
    with contextlib.ExitStack() as modes:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if _autocast_is_on(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        modes.enter_context(torch.inference_mode(False))
        yield


def _autocast_is_on(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # torch before 2.5 does not know all of these devices
        return False


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its inference-only fused kernel, which hides the layers."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from logging a traceback for each input size that does not fit: we try several."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Keep Python from looking for garbage, again and again, among what a trace keeps."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
