"""Runs that are stopped, killed, resumed, or started twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALONE, ENVIRONMENT, OFTEN, command, metrics, ranks_of, same
from safetensors import safe_open

from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.train import state, threads
from ghn_init.train.config import Schedule, TrainConfig
from ghn_init.train.interruption import Interruption
from ghn_init.train.loop import train
from ghn_init.train.state import RunFolder

MakeConfig = Callable[..., TrainConfig]


def published_step(folder: Path) -> str:
    with safe_open(folder / "ghn.safetensors", "pt") as file:
        return str(file.metadata()["ghn_init.step"])


# -- the files of a step


def test_a_run_killed_between_its_last_two_files_is_completed(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config()
    train(run, tmp_path / "whole", ALONE, OFTEN)
    written: list[str] = []

    def killed(function: Callable[..., Any]) -> Callable[..., Any]:
        def save(*args: Any, **kwargs: Any) -> Any:
            if len(written) == 7:  # four steps of two files each: before the very last one
                raise KeyboardInterrupt
            written.append(function.__name__)
            return function(*args, **kwargs)

        return save

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_checkpoint", killed(state.save_checkpoint))
        patch.setattr(torch, "save", killed(torch.save))
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "killed", ALONE, OFTEN)
    train(run, tmp_path / "killed", ALONE, OFTEN)
    assert published_step(tmp_path / "killed") == "4"
    assert same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("left", ["older", "none", "damaged"])
def test_a_hypernetwork_that_is_not_that_of_the_state_is_written_again(
    config: MakeConfig, tmp_path: Path, left: str
) -> None:
    """As versions before this one left it, which wrote the state first."""
    run, out = config(), tmp_path / "run"
    train(run, out, ALONE, OFTEN)
    shutil.copytree(out, tmp_path / "whole")
    file = out / "ghn.safetensors"
    file.unlink()
    if left == "older":
        shutil.copy(train(config(steps=2), tmp_path / "short", ALONE, OFTEN), file)
    elif left == "damaged":
        file.write_bytes(b"not this")
    train(run, out, ALONE, OFTEN)
    assert published_step(out) == "4"
    assert same(tmp_path / "whole", out)


# -- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on(
    config: MakeConfig, tmp_path: Path, number: int
) -> None:
    run, out = config(steps=40), tmp_path / "stopped"
    rarely = command(run, out, "--save-every", "1000")
    process = subprocess.Popen(
        [sys.executable, "-m", "ghn_init", "train", *rarely],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and len(metrics(out)) >= 2:
            process.send_signal(number)
            break
        time.sleep(0.01)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    made = metrics(out)
    assert 2 <= len(made) < 40
    assert f"stopped after step {len(made)} of 40, which is saved in {out}" in error
    assert "Traceback" not in error
    assert published_step(out) == str(len(made))
    train(run, out, ALONE, OFTEN)
    assert metrics(out)[: len(made)] == made
    train(run, tmp_path / "whole", ALONE, OFTEN)
    assert same(tmp_path / "whole", out)


def test_a_second_ctrl_c_ends_at_once_and_handlers_are_put_back() -> None:
    usual = signal.getsignal(signal.SIGINT)
    with Interruption(quiet=True) as interruption:
        assert not interruption.asked
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_what_is_made_again_is_said(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(steps=2), tmp_path, ALONE, OFTEN)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": 1}\n{"step": 4')
    capsys.readouterr()
    train(config(steps=2), tmp_path, ALONE, Schedule(1, 1))
    error = capsys.readouterr().err
    assert "resuming after step 2 of 2" in error
    assert "dropping 2 lines of metrics after step 2" in error
    assert len(metrics(tmp_path)) == 2


# -- one run a folder, and only the same one


def test_two_runs_do_not_share_a_folder(config: MakeConfig, tmp_path: Path) -> None:
    train(config(), tmp_path, ALONE, OFTEN)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with (
        RunFolder(tmp_path, config()).in_use(),
        pytest.raises(GHNInitError, match="another process writes to"),
    ):
        train(config(), tmp_path, ALONE, OFTEN)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    train(config(), tmp_path, ALONE, OFTEN)


def test_the_lock_of_a_killed_run_is_gone(config: MakeConfig, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from ghn_init.train.state import RunFolder\n"
        "from ghn_init.train.config import TrainConfig\n"
        "with RunFolder(pathlib.Path(sys.argv[1]), TrainConfig('', 1, '')).in_use():\n"
        "    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    train(config(steps=1), tmp_path, ALONE, OFTEN)


def fewer_images(data: Path, nets: Path) -> None:
    for file in sorted((data / "train" / "dark").iterdir())[::3]:
        file.unlink()


def a_third_class(data: Path, nets: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(data / split / "dark", data / split / "grey")


def another_class_name(data: Path, nets: Path) -> None:
    for split in ("train", "test"):
        (data / split / "dark").rename(data / split / "night")


def half_the_networks(data: Path, nets: Path) -> None:
    lines = (nets / "train.jsonl").read_text().splitlines(keepends=True)
    (nets / "train.jsonl").write_text("".join(lines[:7]))


def other_networks(data: Path, nets: Path) -> None:
    lines = (nets / "train.jsonl").read_text().splitlines(keepends=True)
    (nets / "train.jsonl").write_text("".join([*lines[:-1], lines[1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer_images, "48 images then, 40 now"),
        (a_third_class, "2 classes then, 3 now; 48 images then, 72 now"),
        (another_class_name, "as many images, classes and architectures, but others"),
        (half_the_networks, "12 architectures then, 6 now"),
        (other_networks, "as many images, classes and architectures, but others"),
    ],
)
def test_a_run_goes_on_with_its_own_data_only(
    image_folder: Path,
    nets_folder: Path,
    config: MakeConfig,
    tmp_path: Path,
    change: Callable[[Path, Path], None],
    message: str,
) -> None:
    data, nets, out = tmp_path / "data", tmp_path / "nets", tmp_path / "run"
    shutil.copytree(image_folder, data)
    shutil.copytree(nets_folder, nets)
    train(config(data=f"imagefolder:{data}", nets=str(nets), steps=1), out, ALONE, OFTEN)
    kept = (out / "state.pt").read_bytes()
    change(data, nets)
    with pytest.raises(GHNInitError, match=message) as caught:
        train(config(data=f"imagefolder:{data}", nets=str(nets), steps=1), out, ALONE, OFTEN)
    assert "elete" not in str(caught.value)
    assert (out / "state.pt").read_bytes() == kept


def test_a_run_without_its_configuration_is_not_continued_with_another(
    config: MakeConfig, tmp_path: Path
) -> None:
    train(config(steps=1), tmp_path, ALONE, OFTEN)
    (tmp_path / "config.json").unlink()
    with pytest.raises(GHNInitError, match=r"another lr \(0.0004 then, 0.1 now\)"):
        train(config(steps=1, lr=0.1), tmp_path, ALONE, OFTEN)
    train(config(steps=1), tmp_path, ALONE, OFTEN)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(GHNInitError, match="missing or damaged"):
        train(config(steps=1), tmp_path, ALONE, OFTEN)


def test_states_of_earlier_versions_go_on(config: MakeConfig, tmp_path: Path) -> None:
    run = config(steps=2)
    train(run, tmp_path, ALONE, OFTEN)
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    for name in ("config", "data", "threads"):
        del content[name]
    torch.save(content, tmp_path / "state.pt")
    train(run, tmp_path, ALONE, OFTEN)
    assert len(metrics(tmp_path)) == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(GHNInitError, match="missing or damaged"):
        train(run, tmp_path, ALONE, OFTEN)


# -- several processes


def processes(arguments: list[str], torchrun: bool) -> list[subprocess.Popen[str]]:
    """Two ranks, started by torchrun or by hand; with torchrun, its agent alone."""
    module = ["-m", "ghn_init.train", *arguments]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return [subprocess.Popen([sys.executable, *launcher, *module], env=ENVIRONMENT, **pipes)]
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *module], env={**ENVIRONMENT, **world, "RANK": str(rank)}, **pipes
        )
        for rank in range(2)
    ]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("torchrun", [True, False])
def test_a_rank_that_dies_ends_the_others(
    config: MakeConfig, tmp_path: Path, torchrun: bool
) -> None:
    run = config(steps=100_000, lr=1e-6)
    started = processes(command(run, tmp_path, "--save-every", "1000"), torchrun)
    deadline = time.monotonic() + 180
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = ranks_of(started[0].pid) if torchrun else dict(enumerate(p.pid for p in started))
    os.kill(ranks[1], signal.SIGKILL)
    start = time.monotonic()
    _, error = started[0].communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert started[0].returncode != 0
    for process in started[1:]:
        process.communicate()
    if not torchrun:
        lines = [line for line in error.splitlines() if line.startswith("ghn-init: ")]
        assert len(lines) == 1
        assert "another process of this run has ended" in lines[0]
        assert "Traceback" not in error
    assert all(not Path(f"/proc/{pid}").exists() for pid in ranks.values())


# -- values, threads


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--num-nets", "-3"), "num_nets is -3: give 1 or more"),
        (("--warmup", "-1"), "warmup is -1: give 0 or more"),
        (("--curriculum", "-1"), "curriculum is -1: give 0 or more"),
        (("--heads", "3"), "3 heads do not go together"),
        (("--heads", "-8"), "heads is -8: give 0 or more"),
        (("--save-every", "0"), "save_every is 0: give 1 or more"),
        (("--log-every", "0"), "log_every is 0: give 1 or more"),
        (("--weight-decay", "nan"), "weight_decay is nan: give 0 or more"),
        (("--lr", "inf"), "lr is inf: give more than 0"),
        (("--image-size", "1"), "image_size is 1: give 8 or more"),
        (("--label-smoothing", "5"), "label_smoothing is 5.0: give a number from 0 to 1"),
        (("--channels", "0"), "channels is 0: give 1 or more"),
        (("--workers", "-1"), "workers is -1: give 0 or more"),
        (("--threads", "-1"), "threads is -1: give 0 or more"),
        (("--holdout", "-2"), "holdout is -2: give 0 or more"),
    ],
)
def test_impossible_values_are_refused_before_anything(
    config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert main(["train", *command(config(), out, *option)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ghn-init: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("loaded", "chosen"), [(False, 4), (True, 1)])
def test_threads_are_as_many_as_are_fast(
    monkeypatch: pytest.MonkeyPatch, loaded: bool, chosen: int
) -> None:
    monkeypatch.setattr(threads, "available", lambda: 4)
    monkeypatch.setattr(threads, "_seconds", lambda n, limit=1.0: n if loaded else 1 / n)
    assert threads.choose() == chosen


def test_the_number_of_threads_is_said_and_stays_that_of_the_run(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "choose", lambda: 1)
    assert main(["train", *command(config(steps=1), tmp_path)]) == 0
    assert "computing with 1 of " in capsys.readouterr().err
    assert torch.load(tmp_path / "state.pt", weights_only=True)["threads"] == 1
    monkeypatch.setattr(threads, "choose", lambda: 2)
    assert main(["train", *command(config(steps=1), tmp_path)]) == 0
    assert "computing with 1 of " in capsys.readouterr().err
