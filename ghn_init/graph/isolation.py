"""What our passes must not touch, or be touched by: the model, random numbers, settings."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import sys
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module, training: bool) -> Iterator[None]:
    """Run modules in the given mode, and put back every attribute that the pass changed.

    Some models cache what they compute (masks, position tables) on themselves: a cache of fake
    tensors must not stay behind. `train()` is not called, as some modules override it.
    """
    modules = list(model.modules())
    saved = [
        (container, container.copy())
        for module in modules
        for container in (module.__dict__, *module.__dict__.values())
        if type(container) in (dict, list, set)
    ]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for container, content in saved:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """Make the same random choices on every trace (some forwards flip coins), and restore."""
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(0)
            torch.default_generator.manual_seed(0)
            if numpy:
                numpy.random.seed(0)
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
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        modes.enter_context(torch.inference_mode(False))
        yield


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
