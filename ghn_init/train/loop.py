"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Images
from ghn_init.images.split import load_images
from ghn_init.schedule import warmup_cosine
from ghn_init.train.config import TRAIN_SPLITS, Schedule, TrainConfig
from ghn_init.train.distributed import World
from ghn_init.train.init import initialize, parameter_groups
from ghn_init.train.logging import Logger
from ghn_init.train.networks.nets import Net, TargetNetwork, load_nets
from ghn_init.train.sampling import MetaBatches
from ghn_init.train.state import RunFolder, State
from ghn_init.train.step import Timer, gradients


def train(config: TrainConfig, out: Path, world: World, schedule: Schedule | None = None) -> Path:
    """Train a hypernetwork, or go on where the run in `out` was stopped.

    Arguments:
        config: the run.
        out: its folder.
        world: the processes that take part; each one calls this function.
        schedule: see there.

    Returns: the hypernetwork's file.

    Raises:
        GHNInitError: architectures or images cannot be read, `out` holds another run or cannot be
            written, or the loss stays infinite.
    """
    schedule = schedule or Schedule()
    if config.meta_batch < world.size:
        raise GHNInitError(f"--meta-batch must be at least {world.size}, one for each process.")
    folder = RunFolder(out, config)
    if world.is_main:
        folder.open()
    quiet = schedule.quiet or not world.is_main
    images = load_images(
        config.data, "train", config.image_size, config.holdout, world.device, progress=not quiet
    )
    ghn = initialize(config, len(images.classes)).to(world.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(ghn, config), config.lr, weight_decay=config.weight_decay, fused=True
    )
    world.wait()
    state = folder.load(ghn, optimizer, world.device)
    world.broadcast(ghn)
    if world.is_main:
        folder.cut_metrics(state.step)

    start, before = time.monotonic(), state.seconds
    timer = Timer(world.device, schedule.profile)
    batches = images.train_batches(
        config.images_per_step, config.seed, state.step, config.steps, config.augment
    )
    meta_batches = _meta_batches(config, images, world, state, schedule)
    with Logger(folder, config, state, schedule.log_every, quiet) as logger:
        while state.step < config.steps:
            with timer.part("data"):
                batch = next(batches)
            with timer.part("build"):
                networks = next(meta_batches)
            lr = learning_rate(config, state.step)
            totals = gradients(ghn, networks, batch, config, state.step, timer)
            with timer.part("update"):
                world.sum_gradients(ghn)
                world.sum(totals.values)
                norm = torch.nn.utils.clip_grad_norm_(ghn.parameters(), config.clip)
                finite = totals.finite and bool(torch.isfinite(norm))
                if finite:
                    _set_learning_rate(optimizer, lr)
                    optimizer.step()
                optimizer.zero_grad()
            _count(state, finite, config)
            state.seconds = before + time.monotonic() - start
            if world.is_main:
                logger.step(totals, lr, norm, finite, timer)
            if state.step % schedule.save_every == 0 or state.step == config.steps:
                world.check_same(ghn)
                if world.is_main:
                    folder.save(state, ghn, optimizer, ghn.config)
    world.wait()
    return folder.ghn_file


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0, or a constant and a linear cooldown."""
    if config.cooldown and step >= config.warmup:
        return config.lr * min(1.0, (config.steps - step) / config.cooldown)
    return warmup_cosine(config.lr, step, config.steps, config.warmup)


def _meta_batches(
    config: TrainConfig, images: Images, world: World, state: State, schedule: Schedule
) -> Iterator[list[tuple[int, TargetNetwork]]]:
    """The networks of every step that is left, built ahead where there are workers."""
    nets: list[Net] = []
    for space in config.space.split(","):
        nets += load_nets(Path(config.nets), TRAIN_SPLITS[space], config.num_nets)
    dataset = MetaBatches(
        nets,
        config.meta_batch,
        config.widths,
        config.seed,
        len(images.classes),
        config.image_size,
        config.dropout,
        world.rank,
        world.size,
        config.curriculum,
        config.rare_share,
        config.share,
    )
    steps = range(state.step, config.steps)
    workers = schedule.workers
    return iter(DataLoader(dataset, None, sampler=steps, num_workers=workers, collate_fn=list))


def _set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _count(state: State, finite: bool, config: TrainConfig) -> None:
    """Count a step, and stop a run that has gone astray."""
    state.step += 1
    state.failures = 0 if finite else state.failures + 1
    state.skipped += not finite
    if state.failures >= config.patience:
        raise GHNInitError(
            f"the loss was not finite in {state.failures} steps in a row, the last one step "
            f"{state.step}. Resume from the last checkpoint with a smaller --lr in another --out, "
            "or with --precision fp32."
        )
