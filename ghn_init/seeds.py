"""Random numbers as a function of what they are for.

A resumed run needs no stored state of a generator: it draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import random

import torch


def seed_of(*parts: object) -> int:
    """A seed of 63 bits for a purpose, given by values such as the run's seed and the step."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(*parts: object) -> torch.Generator:
    """A generator on the CPU for a purpose."""
    return torch.Generator().manual_seed(seed_of(*parts))


def python_generator(*parts: object) -> random.Random:
    """The same of the standard library, for small choices."""
    return random.Random(seed_of(*parts))
