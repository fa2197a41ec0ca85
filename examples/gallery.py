"""Make the pictures of the README: `python examples/gallery.py --ghn CHECKPOINT`.

Small PNGs go into `examples/gallery/`. Without `--ghn` it is the default checkpoint of ghn3, which
is downloaded unless it is in the cache. It takes a few minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ghn_init import GHN, load_ghn
from ghn_init.analysis import LazyModels, diagnose, diversity, draw, embed, load_model
from ghn_init.methods import parse_methods

GALLERY = Path(__file__).parent / "gallery"

METHODS = ("rand", "orth", "ghn3", "ghn3-orth")

ARCHITECTURES = (
    "alexnet", "convnext_tiny", "densenet121", "densenet169", "efficientnet_b0", "efficientnet_b1",
    "googlenet", "inception_v3", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf",
    "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin_t", "vgg11", "vgg11_bn",
    "vit_b_16", "vit_b_32",
)  # fmt: skip


def main() -> None:
    """Make every picture; those that need no checkpoint first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ghn", default="ghn3xlm16", metavar="CHECKPOINT", help="name or path")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--before", metavar="CHECKPOINT", help="an earlier one: the map of the "
                        "architectures is drawn with it as well")  # fmt: skip
    options = parser.parse_args()
    methods = options.methods.split(",")
    GALLERY.mkdir(exist_ok=True)

    for name in ("resnet50", "convnext_tiny", "efficientnet_b0"):
        drawing = draw(load_model(name, "torchvision"), name=name)
        drawing.save(GALLERY / f"draw_{name}.png")
        print(drawing.table())

    predicted = any(variant.method.hypernetwork for variant in parse_methods(options.methods))
    ghn = load_ghn(options.ghn) if predicted else None
    model = load_model("resnet18", "torchvision")
    diagnosis = diagnose(model, methods, ghn=ghn, name="resnet18", progress=True)
    diagnosis.save(GALLERY / "diagnose_resnet18.png")
    print(diagnosis.table())
    if ghn is None:
        return

    draw_map(ghn, GALLERY / "embed.png")
    if options.before:
        draw_map(load_ghn(options.before), GALLERY / "embed_before.png")

    resnets = LazyModels(("resnet18", "resnet34", "resnet50"), "torchvision")
    result = diversity(resnets, methods, ghn=ghn, progress=True)
    result.save(GALLERY / "diversity.png")
    print(result.table())


def draw_map(ghn: GHN, path: Path) -> None:
    """Thirty architectures as a hypernetwork sees them."""
    models = LazyModels(ARCHITECTURES, "torchvision")
    embedding = embed(models, ghn, column="family", values=models.families(), progress=True)
    embedding.save(path)
    print(embedding.table())


if __name__ == "__main__":
    main()
