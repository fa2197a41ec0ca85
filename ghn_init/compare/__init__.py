"""Fine-tune one model from several initializations, under the same budget and on the same images.

    from ghn_init.compare import FineTuning, Point, compare, load_split, parse_methods
    data = load_split("imagefolder:cifar10", labels=1000)
    build = lambda seed: create_model("resnet18", num_classes=10, seed=seed)[0]
    result = compare(build, parse_methods("rand,ghn3-orth"), data, FineTuning(750), [Point(1e-3)])
    print(result.table())
    result.save("curves.png")

`ghn-init compare` does it from the command line. Images need the extra `[train]`, the picture
needs `[plot]`. The names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from ._comparison import Comparison, Row
    from ._finetune import FineTuning, Outcome, Point
    from ._methods import Method, parse_methods
    from ._run import compare
    from ._split import Split, load_split, split_images

__all__ = [
    "Comparison",
    "FineTuning",
    "Method",
    "Outcome",
    "Point",
    "Row",
    "Split",
    "compare",
    "load_split",
    "parse_methods",
    "split_images",
]

_HOME = {
    "Comparison": "_comparison",
    "FineTuning": "_finetune",
    "Method": "_methods",
    "Outcome": "_finetune",
    "Point": "_finetune",
    "Row": "_comparison",
    "Split": "_split",
    "compare": "_run",
    "load_split": "_split",
    "parse_methods": "_methods",
    "split_images": "_split",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
