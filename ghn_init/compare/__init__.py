"""Fine-tune one model from several initializations, under the same budget and on the same images.

    from ghn_init import create_model
    from ghn_init.compare import FineTuning, Point, compare, load_split
    data = load_split("cifar10/", labels=1000)
    build = lambda seed: create_model("resnet18", num_classes=10, seed=seed)[0]
    result = compare(build, ["rand", "ghn3-orth"], data, FineTuning(750), [Point(1e-3)])
    print(result.table())
    result.save("curves.png")

`ghn-init compare` does it from the command line. The picture needs the extra `[plot]`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
