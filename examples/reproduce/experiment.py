"""What the experiments of this folder share: their arguments, their files, and their last line."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ghn_init import GHN, GHNInitError, load_ghn
from ghn_init.analysis import Result

SCALES = ("small", "paper")


def parser(about: str | None, data: str = "") -> argparse.ArgumentParser:
    """The arguments of every experiment.

    Arguments:
        about: docstring of the script.
        data: what `--data` is; empty: the experiment takes none.
    """
    found = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    found.add_argument("--scale", choices=SCALES, default="small", help="default: %(default)s")
    if data:
        found.add_argument("--data", required=True, metavar="DIR", help=data)
    found.add_argument(
        "--ghn", nargs="+", metavar="CHECKPOINT", help="names or paths; default: embedded, at "
        "paper scale the published ghn2 and ghn3xlm16",
    )  # fmt: skip
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="what is finished is kept there: the same command goes on where it was stopped",
    )  # fmt: skip
    return found


def hypernetworks(options: argparse.Namespace) -> dict[str, GHN]:
    """The checkpoints, by their names or the names of their files."""
    published = ["ghn2", "ghn3xlm16"] if options.scale == "paper" else ["embedded"]
    return {Path(name).stem: load_ghn(name) for name in options.ghn or published}


def remember(path: Path, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """What `compute` gives, as JSON has it; from the file, if it was computed before.

    Raises:
        GHNInitError: the file holds what other settings gave.
    """
    now = json.loads(json.dumps(settings))
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] != now:
            raise GHNInitError(
                f"{path} was computed with other settings: {content['settings']}, and now they are "
                f"{now}. Give the same arguments, or another folder."
            )
        return content["result"]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": now, "result": compute()}, indent=1)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)  # whole or not at all
    return json.loads(text)["result"]


def finish(result: Result, options: argparse.Namespace, name: str, beside: str) -> None:
    """Print the table, write it as JSON and as a picture, and put our figure beside the paper's."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(result.to_json() + "\n", encoding="utf-8")
    print(result.table())
    try:
        result.save(options.out / f"{name}.png")
    except GHNInitError as error:
        print(f"no picture: {error}")
    print(beside)


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """`12.3 ± 0.4`, with the sample's standard deviation; `-` of no values."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
