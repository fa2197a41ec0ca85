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

from ghn_init.lazy import lazy

if TYPE_CHECKING:
    from ghn_init.compare.comparison import Comparison, Row
    from ghn_init.compare.finetune import FineTuning, Outcome, Point
    from ghn_init.compare.methods import Method, parse_methods
    from ghn_init.compare.run import compare
    from ghn_init.images.split import Split, load_split, split_images

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
    "Comparison": "ghn_init.compare.comparison",
    "FineTuning": "ghn_init.compare.finetune",
    "Method": "ghn_init.compare.methods",
    "Outcome": "ghn_init.compare.finetune",
    "Point": "ghn_init.compare.finetune",
    "Row": "ghn_init.compare.comparison",
    "Split": "ghn_init.images.split",
    "compare": "ghn_init.compare.run",
    "load_split": "ghn_init.images.split",
    "parse_methods": "ghn_init.compare.methods",
    "split_images": "ghn_init.images.split",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
