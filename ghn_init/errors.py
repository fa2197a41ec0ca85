"""The one exception class of ghn_init."""

from __future__ import annotations


class GHNInitError(Exception):
    """Raised for every foreseen failure: bad arguments, models, inputs, checkpoints or paths.

    The message says what is wrong and what to do about it. It is raised before anything is
    changed: the model, and any file that an export would replace, are as they were.
    """
