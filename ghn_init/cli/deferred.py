"""Commands whose arguments are only made when they are the ones that were given."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


class DeferredParser(argparse.ArgumentParser):
    """The parser of a command with many arguments, so that `ghn-init --help` need not make them.

    Arguments:
        fill: adds the arguments to the parser that it is given; None: there is nothing to defer.
        options: of `ArgumentParser`.
    """

    def __init__(
        self, *, fill: Callable[[argparse.ArgumentParser], None] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._fill = fill

    def parse_known_args(self, *args: Any, **options: Any) -> Any:  # argparse's way in
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return super().parse_known_args(*args, **options)
