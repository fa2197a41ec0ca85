"""Which initialization is best where? Seven families of models and every method that applies.

    python examples/all_methods.py --data cifar10 --out runs/methods

Each model of `examples/small_models.py` (ResNet-50 is left out for its cost) is fine-tuned on 1,000
labeled images from each initialization, 3 seeds, in the same number of steps and at one learning
rate. The methods are those of `ghn-init compare --methods all`, and `ghn3-orth+lsuv`; what does not
apply to a model is named below its table. Methods that learn factors do so in `--init-steps` steps.
Methods that take values from a trained relative find it in `--sources`, as `<model>.safetensors`.

What is finished is kept in `--out`: the same command goes on where it was stopped. `--quick` shows
in some minutes that everything works.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from small_models import MODELS

from ghn_init import create_model, load_ghn
from ghn_init.compare import Comparison, FineTuning, Point, compare, load_split

FAMILIES = tuple(name for name in MODELS if name != "resnet50")
LEARNED = {"gradinit": "batch=32", "nio": "batch=32", "metainit": "batch=16"}
"""Methods that learn factors, with the batch that they see in a step."""

HERE = Path(__file__).parent


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[Comparison] = []
    for name in options.models:
        found.append(run(name, options))
        print(found[-1].table(), end="\n\n", flush=True)
        content = [json.loads(result.to_json()) for result in found]
        (options.out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    print(summary(found))


def run(name: str, options: argparse.Namespace) -> Comparison:
    """One model; what is in its file is not run again."""
    few = 100 if options.quick else 0
    source = None if options.sources is None else options.sources / f"{name}.safetensors"
    return compare(
        lambda seed: create_model(f"{HERE / 'small_models.py'}:{name}", None, 10, seed)[0],
        methods(options),
        load_split(options.data, 32, few or 1000, 0, few or options.test_images,
                   device=options.device, progress=True),
        FineTuning(options.steps, eval_every=options.eval_every),
        [Point(options.lr)],
        seeds=options.seeds,
        ghn=load_ghn(options.ghn),
        source=source if source is not None and source.exists() else None,
        reach=(30, 40, 50),
        results=options.out / f"{name}.json",
        name=name,
        progress=True,
    )  # fmt: skip


def methods(options: argparse.Namespace) -> list[str]:
    """The model's own first, as the others are compared with it."""
    learned = [f"{name}:steps={options.init_steps},{more}" for name, more in LEARNED.items()]
    return ["rand", *learned, "ghn3-orth+lsuv", "all"]


def summary(found: list[Comparison]) -> str:
    """A table in Markdown: mean accuracy, deviation and seconds of the initialization."""
    names = list(dict.fromkeys(row.method for result in found for row in result.rows))
    models = " | ".join(result.name for result in found)
    lines = [f"| | {models} |", "|---" * (len(found) + 1) + "|"]
    for method in names:
        cells = []
        for result in found:
            row = next((row for row in result.rows if row.method == method), None)
            if row is None or row.mean is None:
                cells.append("-" if row is None else "diverged")
                continue
            deviation = "" if row.deviation is None else f" ± {row.deviation:.1f}"
            cells.append(f"{row.mean:.1f}{deviation} ({row.initializing:.0f} s)")
        lines.append(f"| `{method.partition(':')[0]}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=FAMILIES, metavar="NAME")
    parser.add_argument("--ghn", default="embedded", metavar="CHECKPOINT", help="name or path")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="weights of trained relatives")
    parser.add_argument("--steps", type=int, default=300, help="of a run; default: %(default)s")
    parser.add_argument("--eval-every", type=int, default=0, help="default: a tenth of the steps")
    parser.add_argument("--init-steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--test-images", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a step of everything")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.init_steps, options.seeds = 1, 1, 1
    return options


if __name__ == "__main__":
    main()
