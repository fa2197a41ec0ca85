"""A trained hypernetwork goes to the Hub and comes back; its card says what was trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from hub_server import Hub, serve, turn_to
from runs import ALONE, OFTEN

import ghn_init
from ghn_init.cli.main import _parser
from ghn_init.cli.main import main as ghn_init_main
from ghn_init.cli.options import from_options
from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Origin
from ghn_init.loading import convert
from ghn_init.loading.metadata import TRAINING_KEY
from ghn_init.loading.runs import read_run
from ghn_init.train.config import TrainConfig
from ghn_init.train.loop import train

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub("me/tiny", {})) as server:
        turn_to(server.endpoint, tmp_path / "hub", monkeypatch, seconds=5)
        yield server


@pytest.fixture
def run(config: Callable[..., TrainConfig], tmp_path: Path) -> tuple[TrainConfig, Path]:
    """A run of twenty steps, and its folder."""
    settings = config(steps=20, own_images=True)
    train(settings, tmp_path / "run", ALONE, OFTEN)
    return settings, tmp_path / "run"


def predicted(place: str | Path) -> dict[str, torch.Tensor]:
    model = torchvision.models.squeezenet1_1(num_classes=2)
    tensors: dict[str, torch.Tensor] = ghn_init.predict(model, place)
    return tensors


def test_there_and_back(hub: Hub, run: tuple[TrainConfig, Path]) -> None:
    settings, folder = run
    (folder / "test").mkdir()
    ghn = ghn_init.load_ghn(folder / "ghn.safetensors")
    digest = sum(float(p.double().abs().sum()) for p in ghn.parameters())
    evaluation = {"split": "test", "images": 60, "ghn": digest}
    results = {"evaluation": evaluation, "accuracies": [[50.0, 10.0], [60.0, 12.0]]}
    (folder / "test" / "test.json").write_text(json.dumps(results))
    arguments = ["push", str(folder / "ghn.safetensors"), "me/tiny", "--license", "mit"]
    assert ghn_init_main(arguments) == 0
    assert set(hub.files) == {"model.safetensors", "config.json", "README.md"}
    assert hub.large  # the weights came as a large file
    ours, theirs = predicted(folder / "ghn.safetensors"), predicted("hf-hub:me/tiny")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    _check_card(hub.files["README.md"].decode(), settings, folder)
    about = json.loads(hub.files["config.json"])
    assert about["library_name"] == "ghn_init"
    assert about["steps"] == 20
    assert about["data"] == {"architectures": 12, "classes": 2, "images": 48}
    assert str(folder.parent) not in hub.files["config.json"].decode()
    assert str(folder.parent).encode() not in hub.files["model.safetensors"]


def _check_card(card: str, settings: TrainConfig, folder: Path) -> None:
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: ghn_init" in head
    assert "license: mit" in head
    for part in (
        'ghn="hf-hub:me/tiny"',
        "hidden size 16, 1 layers, 8 heads",
        "48 images, 2 classes, 32 x 32 pixels",
        "12 of `deepnets`",
        "| steps | 20 of 20 |",
        "| test | 2 | 60 | 55.0 ± 5.0 | 11.0 ± 1.0 |",
        "| license | mit |",
    ):
        assert part in text, text
    accuracies = [json.loads(line)["accuracy"] for line in _lines(folder)[-10:]]
    assert f"top-1 {10 * sum(accuracies):.1f}%" in text
    assert str(folder.parent) not in card  # no path of this machine
    command = text.partition("```sh\n")[2].partition("\n```")[0]
    options = _parser().parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    again = from_options(TrainConfig, options, steps=options.max_steps)
    shown = {"nets": Path(settings.nets).name, "data": f"imagefolder:{Path(settings.data).name}"}
    assert vars(again) == vars(settings) | shown  # the command makes the same run


def test_places_on_the_hub_are_said_in_full(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Only paths of this machine are cut; a run in a folder that is not its own is not told."""
    teacher = {"teacher": "/home/me/nets.py:small", "teacher_weights": "/home/me/t.safetensors"}
    run = config(start_from="hf-hub:me/before@main", **teacher)
    training = json.loads(run.to_json())
    known = read_run({TRAINING_KEY: json.dumps(training)}, Origin(), None, {})
    assert known.training["start_from"] == "hf-hub:me/before@main"
    assert known.training["nets"] == Path(training["nets"]).name
    assert known.training["teacher"] == "nets.py:small"
    assert known.training["teacher_weights"] == "t.safetensors"
    for name, text in (("config.json", "{}"), ("metrics.jsonl", '{"step": 3, "loss": 1}\n')):
        (tmp_path / name).write_text(text)
    origin = Origin(source=str(tmp_path / "other.safetensors"))
    assert read_run({TRAINING_KEY: json.dumps(training)}, origin, None, {}) == known
    (tmp_path / "config.json").write_text(json.dumps(training))
    assert read_run({TRAINING_KEY: json.dumps(training)}, origin, None, {}).loss == 1


def _lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_what_was_changed_since_is_not_said_to_be_trained(
    run: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    _, folder = run
    ghn = ghn_init.load_ghn(folder / "ghn.safetensors")
    ghn_init.save(ghn, tmp_path / "same")
    assert "| steps | 20 of 20 |" in (tmp_path / "same" / "README.md").read_text()
    with torch.no_grad():
        ghn.embed.weight.add_(1)
    ghn_init.save(ghn, tmp_path / "changed")
    card = (tmp_path / "changed" / "README.md").read_text()
    assert "is not recorded" in card
    assert "copied from" not in card
    ghn_init.save(ghn, tmp_path / "changed", run=folder)  # its author knows better
    assert "| steps | 20 of 20 |" in (tmp_path / "changed" / "README.md").read_text()
    convert(folder / "ghn.safetensors", tmp_path / "half.safetensors", dtype="float16")
    ghn_init.save(tmp_path / "half.safetensors", tmp_path / "half")
    assert "| steps | 20 of 20 |" in (tmp_path / "half" / "README.md").read_text()
    with pytest.raises(GHNInitError, match=r"has no metrics\.jsonl"):
        ghn_init.save(ghn, tmp_path / "changed", run=tmp_path)
    with pytest.raises(GHNInitError, match=r"config\.json of something else"):
        ghn_init.save(ghn, folder)  # which would end the run
