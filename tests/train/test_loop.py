"""The trainer: the gradient of Eq. 10, resuming, failures, and what is left in the folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import ALONE, ENVIRONMENT, OFTEN, command, metrics, on_two_processes, same, weights

from ghn_init import GHNInitError, load_ghn
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.images import load_images
from ghn_init.loading import convert
from ghn_init.train import loop
from ghn_init.train.config import Schedule, TrainConfig, from_json
from ghn_init.train.distributed import World, start
from ghn_init.train.init import initialize
from ghn_init.train.loop import learning_rate, train
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.optimizer import make_optimizer, parameter_groups
from ghn_init.train.sampling import MetaBatches
from ghn_init.train.step import Timer, Totals, gradients
from ghn_init.weights.tiling import repeated_all

MakeConfig = Callable[..., TrainConfig]


def meta_batch(config: TrainConfig, classes: int = 2) -> MetaBatches:
    nets = load_nets(Path(config.nets), "train")
    return MetaBatches(nets, config.meta_batch, config.widths, config.seed, classes, 32)


@pytest.mark.parametrize("own_images", [False, True])
def test_the_gradient_is_that_of_equation_10(config: MakeConfig, own_images: bool) -> None:
    run = config(dropout=0.0, gamma=0.01, meta_batch=3, batch_size=8, own_images=own_images)
    images = load_images(run.data)
    assert run.images_per_step == (24 if own_images else 8)
    batch = next(images.train_batches(run.images_per_step, 0, 0, 1))
    seen = [[x[8 * k * own_images :][:8] for x in batch] for k in range(3)]
    networks = meta_batch(run)[0]
    ghn = initialize(run, 2)
    totals = gradients(ghn, networks, batch, run, 0, Timer(ALONE.device))
    found = {name: p.grad.clone() for name, p in ghn.named_parameters() if p.grad is not None}

    ghn.zero_grad()
    blocks = predict_graphs([n.graph for _, n in networks], ghn)
    predicted = [repeated_all(b, n.shapes) for b, (_, n) in zip(blocks, networks, strict=True)]
    losses = [
        F.cross_entropy(network(seen[place][0], params), seen[place][1])
        + 0.01 * sum(tensor.norm() for tensor in params.values())
        for (place, network), params in zip(networks, predicted, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert totals.metrics(3)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert set(found) == set(dict(ghn.named_parameters()))
    for name, p in ghn.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_nothing(config: MakeConfig) -> None:
    run = config(lr=1.0, warmup=10, steps=110)
    rates = [learning_rate(run, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


LOW_RANK = {"decoder": "low-rank", "rank": 4, "max_channels": 96}


@pytest.mark.parametrize(
    "changes", [{}, {"arch": "ghn2"}, {"arch": "mlp", "precision": "bf16"}, LOW_RANK]
)
def test_a_resumed_run_is_the_uninterrupted_one(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    run = config(**changes)
    train(run, tmp_path / "whole", ALONE, OFTEN)

    def stop(*args: Any) -> Any:
        if args[4] == 2:
            raise KeyboardInterrupt
        return gradients(*args)

    monkeypatch.setattr(loop, "gradients", stop)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts", ALONE, OFTEN)
    monkeypatch.setattr(loop, "gradients", gradients)
    assert len(metrics(tmp_path / "parts")) == 2
    train(run, tmp_path / "parts", ALONE, OFTEN)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_metrics_behind_the_last_checkpoint_are_made_again(
    config: MakeConfig, tmp_path: Path
) -> None:
    train(config(), tmp_path / "a", ALONE, OFTEN)
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "loss": 1}\n{"step": 1')
    before = metrics(tmp_path / "a", 4)
    train(config(), tmp_path / "a", ALONE, OFTEN)
    assert metrics(tmp_path / "a") == before


@pytest.mark.parametrize("changes", [{}, LOW_RANK])
def test_the_result_says_what_it_is(
    config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = config(steps=1, **changes)
    path = train(run, tmp_path, ALONE, OFTEN)
    ghn = load_ghn(path)
    assert ghn.config == run.ghn(2)
    assert from_json((tmp_path / "config.json").read_text()) == run
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    told = from_json(about["ghn_init.training"])
    assert told == replace(run, nets=Path(run.nets).name, data=told.data)
    assert told.data == f"imagefolder:{Path(run.data).name}"  # no folders of this machine
    assert about["ghn_init.step"] == "1"


@pytest.mark.parametrize("changes", [{}, LOW_RANK])
def test_the_loss_falls(config: MakeConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Bright and dark images are told apart within some steps."""
    run = config(steps=24, lr=4e-3, warmup=5, num_nets=2, dropout=0.0, **changes)
    train(run, tmp_path, ALONE, OFTEN)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_a_run_is_not_continued_with_other_arguments(config: MakeConfig, tmp_path: Path) -> None:
    train(config(), tmp_path, ALONE, OFTEN)
    with pytest.raises(GHNInitError, match=r"another lr \(0.0004 then, 0.1 now\)"):
        train(config(lr=0.1), tmp_path, ALONE, OFTEN)
    (tmp_path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(GHNInitError, match=r"state\.pt cannot be read"):
        train(config(), tmp_path, ALONE, OFTEN)


def test_an_infinite_loss_is_skipped_counted_and_in_the_end_an_error(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {1}

    def spoil(*args: Any) -> Totals:
        totals = gradients(*args)
        if args[4] in bad:
            totals.values[-1] += 1
        return totals

    monkeypatch.setattr(loop, "gradients", spoil)
    run = config(patience=3, steps=8)
    train(run, tmp_path / "once", ALONE, OFTEN)
    lines = metrics(tmp_path / "once")
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert "loss" not in lines[1]
    bad |= {3, 4, 5}
    with pytest.raises(GHNInitError, match="not finite in 3 steps in a row, the last one step 6"):
        train(run, tmp_path / "thrice", ALONE, OFTEN)


def test_a_skipped_step_changes_nothing(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*args: Any) -> Totals:
        totals = gradients(*args)
        for p in args[0].parameters():
            p.grad.fill_(float("nan"))
        return totals

    monkeypatch.setattr(loop, "gradients", spoil)
    run = config(steps=2)
    train(run, tmp_path, ALONE, OFTEN)
    start_weights = initialize(run, 2).state_dict()
    assert all(torch.equal(t, start_weights[name]) for name, t in weights(tmp_path).items())


def test_processes_resume_after_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two processes does not see the folder, and begins at step 0."""
    alone = World(0, 2, torch.device("cpu"))
    monkeypatch.setattr(World, "sum", lambda world, tensor: tensor)
    alone.check_step(0)
    with pytest.raises(GHNInitError, match="one folder that all processes"):
        alone.check_step(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "ghn9"}, "arch is 'ghn9': give ghn3, ghn2 or mlp"),
        ({"precision": "fp8"}, "precision is 'fp8': give fp32 or bf16"),
        ({"steps": 0}, "steps is 0: give 1 or more"),
        ({"hidden_size": 18}, "a hidden size of 18 and 8 heads do not go together"),
        ({"lr": 0.0}, "lr is 0.0: give more than 0"),
        (
            {"max_channels": 10**6, "decoder": "low-rank"},
            "channels is 1000000: give an int from 1 to",
        ),
        ({**LOW_RANK, "parametrization": "mup"}, "the low-rank decoder has only standard"),
    ],
)
def test_impossible_runs_are_refused(
    config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GHNInitError, match=message):
        config(**changes)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(GHNInitError, match="cannot compute on"), start("nonsense"):
        pass


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    config: MakeConfig, tmp_path: Path
) -> None:
    run = config(steps=8)
    train(run, tmp_path / "whole", ALONE, OFTEN)
    module = [sys.executable, "-m", "ghn_init.train", *command(run, tmp_path / "killed")]
    process = subprocess.Popen(module, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    metrics_file = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics_file.exists() and metrics_file.read_text().count("\n") >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    assert len(metrics(tmp_path / "killed")) < 8
    train(run, tmp_path / "killed", ALONE, OFTEN)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_make_the_same_first_step_as_one(config: MakeConfig, tmp_path: Path) -> None:
    """Both ranks hold the same weights, or the run ends with an error (`World.check_same`)."""
    run = config(steps=2, meta_batch=3)
    train(run, tmp_path / "one", ALONE, OFTEN)
    on_two_processes(command(run, tmp_path / "two"))
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for name in ("loss", "cross_entropy", "accuracy", "grad_norm"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4)
    after = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        assert (tensor - after[name]).norm() <= 1e-2 * tensor.norm() + 1e-6


def test_a_run_can_start_from_a_checkpoint(config: MakeConfig, tmp_path: Path) -> None:
    path = str(tmp_path / "first/ghn.safetensors")
    convert(train(config(steps=2), tmp_path / "first", ALONE, OFTEN), path, orth_start=2)
    further = config(steps=1, start_from=path, lr=1e-9)
    assert load_ghn(train(further, tmp_path / "second", ALONE, OFTEN)).defaults.orth_start == 2
    for name, tensor in weights(tmp_path / "second").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "first")[name])
    with pytest.raises(GHNInitError, match="another size"):
        train(config(start_from=path, layers=2), tmp_path / "third", ALONE, OFTEN)


@pytest.mark.slow
def test_the_loss_falls_on_two_processes(config: MakeConfig, tmp_path: Path) -> None:
    run = config(steps=30, warmup=5, num_nets=2, dropout=0.0)
    on_two_processes(command(run, tmp_path, "--lr", "4e-3", "--num-nets", "2"))
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_a_run_with_a_cooldown_can_be_made_longer(config: MakeConfig, tmp_path: Path) -> None:
    run = config(steps=100, warmup=10, cooldown=20)
    rates = [learning_rate(run, step) / run.lr for step in range(101)]
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0
    short = config(steps=2, cooldown=1)
    train(short, tmp_path / "grown", ALONE, OFTEN)
    with pytest.raises(GHNInitError, match=r"another .*cooldown \(1 then, 0 now\)"):
        train(replace(short, steps=4, cooldown=0), tmp_path / "grown", ALONE, OFTEN)
    train(replace(short, steps=4), tmp_path / "grown", ALONE, OFTEN)
    assert metrics(tmp_path / "grown")[-1]["step"] == 4


def test_mup_gives_every_layer_a_rate_by_its_fan_in(config: MakeConfig) -> None:
    run = config(parametrization="mup", hidden_size=32)
    ghn = initialize(run, 2)
    groups = parameter_groups(ghn, run)
    factor = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    assert len(factor) == len(list(ghn.parameters()))
    assert factor[id(ghn.decoder.conv[2].weight)] == 64 / (8 * 32)
    assert factor[id(ghn.decoder.conv[2].bias)] == 1
    weights = [*ghn.decoder([(torch.randn(64, 32), (8, 8, 3, 3))]), ghn.decoder.conv[2].weight]
    assert weights[0].std().item() == pytest.approx(0.1, rel=0.3)


def test_one_network_cannot_outweigh_the_others(config: MakeConfig) -> None:
    run = config(dropout=0.0, meta_batch=2, network_clip=1e-3)
    batch = next(load_images(run.data).train_batches(8, 0, 0, 1))
    ghn = initialize(run, 2)
    norms = []
    for limit in (0.0, 1e-3):
        clipped = replace(run, network_clip=limit)
        gradients(ghn, meta_batch(run)[0], batch, clipped, 0, Timer(ALONE.device))
        norms.append(torch.cat([p.grad.flatten() for p in ghn.parameters()]).norm().item())
        ghn.zero_grad()
    assert 0 < norms[1] < norms[0] / 10


@pytest.mark.parametrize("name", ["sgd", "lamb", "adam"])
def test_another_optimizer_of_timm(config: MakeConfig, tmp_path: Path, name: str) -> None:
    run = config(optimizer=name, parametrization="mup", steps=2)
    train(run, tmp_path, ALONE, OFTEN)
    assert len(metrics(tmp_path)) == 2
    before = initialize(run, 2).state_dict()
    assert any(not torch.equal(t, before[n]) for n, t in weights(tmp_path).items())
    factors = {group["lr_factor"] for group in make_optimizer(initialize(run, 2), run).param_groups}
    assert len(factors) > 1


def test_an_unknown_optimizer(config: MakeConfig) -> None:
    run = config(optimizer="adamn")
    with pytest.raises(GHNInitError, match=r"'adamn' cannot be used .*: give one of timm\.optim"):
        make_optimizer(initialize(run, 2), run)


def test_hypernetworks_can_be_kept(config: MakeConfig, tmp_path: Path) -> None:
    run = config(steps=5, cooldown=1)
    train(run, tmp_path, ALONE, Schedule(save_every=3, keep_every=2, log_every=1, quiet=True))
    assert sorted(path.name for path in tmp_path.glob("ghn*")) == [
        *("ghn-2.safetensors", "ghn-4.safetensors", "ghn.safetensors"),
    ]
    two, four = (load_ghn(tmp_path / f"ghn-{step}.safetensors").state_dict() for step in (2, 4))
    assert any(not torch.equal(tensor, four[name]) for name, tensor in two.items())
    train(replace(run, steps=2, cooldown=1), tmp_path / "two", ALONE, OFTEN)
    assert all(torch.equal(t, two[name]) for name, t in weights(tmp_path / "two").items())
