"""Models by name, one at a time in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ghn_init.models import create_model, short_name


def load_model(
    name: str, library: str | None = None, num_classes: int | None = None, seed: int = 0
) -> nn.Module:
    """What `ghn_init.create_model` builds from the same arguments, without its library.

    Raises:
        GHNInitError: as `create_model`.
    """
    return create_model(name, library, num_classes, seed)[0]


class LazyModels(Mapping[str, nn.Module]):
    """Models by name, each built when it is asked for and then forgotten: one at a time in memory.

    Arguments:
        names: as in `ghn_init.create_model`.
        library, num_classes, seed: as there.
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
        self._how = (library, None if pretrained else num_classes, seed, pretrained)

    def __getitem__(self, name: str) -> nn.Module:
        return create_model(self._names[name], *self._how)[0]

    def families(self) -> dict[str, str]:
        """The family of each model: its name up to the first digit, underscore or dot."""
        return {name: re.split(r"[\d_.]", name)[0] or name for name in self._names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
