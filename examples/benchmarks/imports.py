"""What `import ghn_init` adds to `import torch`, and what the command line imports before it must.

    python examples/benchmarks/imports.py --repeat 9 -o imports.json

Every figure is the median over fresh processes. `first use` is the time that the modules behind
`ghn_init.apply` take, which are imported when it is first asked for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _common import machine, median, table, write_json

IMPORTS = """
import json, sys, time
start = time.perf_counter()
import torch
imported = time.perf_counter()
import ghn_init
ours = time.perf_counter()
ghn_init.apply
used = time.perf_counter()
print(json.dumps([imported - start, ours - imported, used - ours]))
"""

COMMAND = """
import json, sys, time
start = time.perf_counter()
from ghn_init.cli.main import main
sys.stdout = open("/dev/null", "w")
try:
    main(sys.argv[1:])
except SystemExit:
    pass
seconds = time.perf_counter() - start
print(json.dumps([seconds, [m for m in sys.modules if "." not in m]]), file=sys.__stdout__)
"""

HEAVY = (
    "h5py", "huggingface_hub", "matplotlib", "networkx", "numpy", "safetensors", "scipy", "sympy",
    "timm", "torch", "torchvision", "transformers",
)  # fmt: skip
COMMANDS = ("--help", "export --help", "train run --help", "list --cached")


def main() -> None:
    options = arguments()
    runs = [run(IMPORTS) for _ in range(options.repeat)]
    names = ("import torch", "import ghn_init, after it", "first use of ghn_init.apply")
    seconds = {
        name: median(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)
    }
    print(table(["", "s"], [[name, value] for name, value in seconds.items()]))
    commands: dict[str, dict[str, Any]] = {}
    for command in COMMANDS:
        answers = [run(COMMAND, *command.split()) for _ in range(options.repeat)]
        heavy = [module for module in HEAVY if module in answers[0][1]]
        commands[command] = {"seconds": median([a[0] for a in answers]), "heavy": heavy}
    rows = [[f"ghn-init {c}", r["seconds"], " ".join(r["heavy"])] for c, r in commands.items()]
    print("\n" + table(["", "s", "heavy modules"], rows))
    content = {"machine": machine("wall"), "seconds": seconds, "commands": commands}
    write_json(options.output, content)


def run(program: str, *words: str) -> list[Any]:
    """What a program prints, as JSON, in a fresh process."""
    command = [sys.executable, "-c", program, *words]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    answer: list[Any] = json.loads(printed)
    return answer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
