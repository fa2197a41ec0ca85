"""Models as a user names them: in a library, or in a Python file."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.models import create_model, is_in_file


def load_model(
    name: str, library: str | None = None, num_classes: int | None = None, seed: int = 0
) -> nn.Module:
    """Build a model without pretrained weights.

    Arguments:
        name: of a timm or torchvision model, as in `ghn-init export`; or `path/to/file.py:factory`,
            a function or class in a Python file that gives a model when it is called. The file is
            run: use only files that you trust.
        library: `"timm"` or `"torchvision"`; not for a file.
        num_classes: outputs of the classification layer; given to a factory as `num_classes=`.
            Default: the library's or the factory's.
        seed: of the model's own initialization. The global RNG is left as it is.

    Raises:
        GHNInitError: no such model, file or factory, or building it fails.
    """
    return create_model(name, library, num_classes, seed)[0]


def pretrained_model(name: str, library: str | None = None) -> nn.Module:
    """Build a library's model with its published weights, which are downloaded unless cached.

    Raises:
        GHNInitError: a model in a file, or weights that do not exist or cannot be fetched.
    """
    if is_in_file(name):
        raise GHNInitError(f"{name!r} has no pretrained weights that are known here: leave it out.")
    library = library or create_model(name)[1]
    try:
        model: nn.Module
        if library == "timm":
            model = importlib.import_module("timm").create_model(name, pretrained=True)
        else:
            models = importlib.import_module("torchvision.models")
            model = models.get_model(name, weights="DEFAULT")
    except Exception as error:  # whatever a library's builder or a download raises
        raise GHNInitError(
            f"no pretrained weights of {library} model {name!r}: {_reason(error)}"
        ) from error
    return model


class LazyModels(Mapping[str, nn.Module]):
    """Models by name, each built when it is asked for and then forgotten: one at a time in memory.

    Arguments:
        names: as in `load_model`.
        library, num_classes, seed: as in `load_model`.
        pretrained: with the library's published weights (`num_classes` and `seed` are not used).
    """

    def __init__(
        self,
        names: Sequence[str],
        library: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        pretrained: bool = False,
    ) -> None:
        short = Counter(map(short_name, names))
        self._names = {n if short[short_name(n)] > 1 else short_name(n): n for n in names}
        self._library, self._num_classes = library, num_classes
        self._seed, self._pretrained = seed, pretrained

    def __getitem__(self, name: str) -> nn.Module:
        if self._pretrained:
            return pretrained_model(self._names[name], self._library)
        return load_model(self._names[name], self._library, self._num_classes, self._seed)

    def families(self) -> dict[str, str]:
        """The family of each model: its name up to the first digit, underscore or dot."""
        return {name: re.split(r"[\d_.]", name)[0] or name for name in self._names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def short_name(name: str) -> str:
    """The factory of a model in a file, for tables and pictures; else the name."""
    return name.rpartition(":")[2] if is_in_file(name) else name


def _reason(error: Exception) -> str:
    """The first line of a message that others wrote."""
    return (str(error).splitlines() or [type(error).__name__])[0]
