"""The training loop."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Batch, Images
from ghn_init.images.split import load_images
from ghn_init.schedule import warmup_cosine
from ghn_init.train.config import TRAIN_SPLITS, Schedule, TrainConfig
from ghn_init.train.distributed import World
from ghn_init.train.init import initialize
from ghn_init.train.interruption import Interruption
from ghn_init.train.logging import Logger
from ghn_init.train.networks.library import load_models
from ghn_init.train.networks.nets import Net, TargetNetwork, load_nets
from ghn_init.train.optimizer import make_optimizer
from ghn_init.train.parallel import predictor
from ghn_init.train.sampling import MetaBatches
from ghn_init.train.state import RunFolder, State, trained_on
from ghn_init.train.step import Timer, Totals, gradients
from ghn_init.train.teacher import load_teacher
from ghn_init.train.threads import use


def train(config: TrainConfig, out: Path, world: World, schedule: Schedule | None = None) -> Path:
    """Train a hypernetwork, or go on where the run in `out` was stopped.

    SIGINT and SIGTERM end the run after the step that it is in. It is saved, and then the signal
    does what it usually does.

    Arguments:
        config: the run.
        out: its folder.
        world: the processes that take part; each one calls this function.
        schedule: see there.

    Returns: the hypernetwork's file.

    Raises:
        GHNInitError: architectures or images cannot be read, `out` holds another run, is in use or
            cannot be written, another process has ended, or the loss stays infinite.
    """
    if config.meta_batch < world.size:
        raise GHNInitError(f"meta_batch must be at least {world.size}, one for each process.")
    folder, schedule = RunFolder(out, config), schedule or Schedule()
    if world.is_main:
        folder.check_config()  # before what takes long
    images, nets = _sources(config, world, schedule.quiet or not world.is_main)
    with folder.in_use() if world.is_main else contextlib.nullcontext():
        trainer = Trainer(config, folder, world, schedule, images, nets)
        interruption = trainer.run()
        stopped = trainer.state.step
        del trainer  # and its workers
    if interruption is not None:
        if world.is_main:
            print(
                f"stopped after step {stopped} of {config.steps}, which is saved in {out}. The "
                "same command goes on from there.",
                file=sys.stderr,
            )
        interruption.deliver()
    return folder.ghn_file


class Trainer:
    """Everything that a run needs, at the step where it was saved last.

    Arguments:
        config: the run.
        folder: of the run; the main process uses it.
        world: the processes that take part.
        schedule: see there.
        images, nets: what is trained on.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        world: World,
        schedule: Schedule,
        images: Images,
        nets: Sequence[Net],
    ) -> None:
        self.config, self.folder, self.world, self.schedule = config, folder, world, schedule
        self.quiet = schedule.quiet or not world.is_main
        self.images, self.nets = images, nets
        self.teacher = load_teacher(config, self.images)
        self.data = trained_on(self.images, self.nets)
        if self.teacher is not None:
            self.data |= self.teacher.key
        self.ghn = initialize(config, len(self.images.classes)).to(world.device)
        self.optimizer = make_optimizer(self.ghn, config)
        self.timer = Timer(world.device, schedule.profile)
        world.wait()  # the main process has checked the folder
        self.state = folder.load(self.ghn, self.optimizer, world.device, self.data)
        world.check_step(self.state.step)
        world.broadcast(self.ghn)
        self.predict = predictor(self.ghn, world)
        self._set_threads()

    def run(self) -> Interruption | None:
        """All steps that are left; the interruption that ended them early, if there was one."""
        config, state, timer = self.config, self.state, self.timer
        if self.world.is_main:
            self._go_on()
        start, before = time.monotonic(), state.seconds
        logger = Logger(self.folder, config, state, self.schedule.log_every, self.quiet)
        with Interruption(self.quiet) as interruption, logger:
            sampled = self._sampled()
            batches = self._batches(sampled)
            meta_batches = self._meta_batches(sampled)
            while state.step < config.steps:
                with timer.part("data"):
                    batch = next(batches)
                with timer.part("build"):
                    networks = next(meta_batches)
                lr = learning_rate(config, state.step)
                totals = gradients(
                    self.ghn, networks, batch, config, state.step, timer, self.teacher, self.predict
                )
                with timer.part("update"):
                    norm, finite = self._update(totals, lr)
                _count(state, finite, config)
                state.seconds = before + time.monotonic() - start
                if self.world.is_main:
                    logger.step(totals, lr, norm, finite, timer)
                stopping = self.world.any(interruption.asked)
                every = state.step % self.schedule.save_every == 0
                if every or stopping or state.step == config.steps:
                    self._save()
                if self._keeps(state.step):
                    self.folder.save_ghn(state, self.ghn, self.data, f"ghn-{state.step}")
                if stopping:
                    return interruption
        self.world.wait()
        return None

    def _update(self, totals: Totals, lr: float) -> tuple[Tensor, bool]:
        """Change the weights, unless something is not finite.

        Returns: the norm of the gradient, and whether loss and gradient were finite.
        """
        self.world.sum(totals.values)
        norm = torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), self.config.clip)
        finite = totals.finite and bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, finite

    def _keeps(self, step: int) -> bool:
        """Whether this process writes a hypernetwork that stays, after this step."""
        every = self.schedule.keep_every
        return bool(every) and step % every == 0 and self.world.is_main

    def _save(self) -> None:
        self.world.check_same(self.ghn)
        if self.world.is_main:
            self.folder.save(self.state, self.ghn, self.optimizer, self.data)

    def _go_on(self) -> None:
        """Bring the files to the step that was saved last, and say which it is."""
        step = self.state.step
        self.folder.publish(self.state, self.ghn, self.data)
        dropped = self.folder.cut_metrics(step)
        if self.quiet:
            return
        if step:
            print(f"resuming after step {step} of {self.config.steps}", file=sys.stderr)
        if dropped:
            print(f"dropping {dropped} lines of metrics after step {step}: those steps were not "
                  "saved, and are made again", file=sys.stderr)  # fmt: skip

    def _set_threads(self) -> None:
        """The number that is asked for, or that the run began with, or that is faster now."""
        wanted = self.schedule.threads
        if wanted is None or self.world.device.type != "cpu":
            return
        self.state.threads = use(wanted or self.state.threads, self.quiet)

    def _sampled(self) -> MetaBatches:
        """The target networks of every step."""
        config = self.config
        return MetaBatches(
            self.nets,
            config.meta_batch,
            config.widths,
            config.seed,
            len(self.images.classes),
            config.image_size,
            config.dropout,
            self.world.rank,
            self.world.size,
            config.curriculum,
            config.rare_share,
            config.share,
        )

    def _batches(self, sampled: MetaBatches) -> Iterator[Batch]:
        """The images of every step that is left: of each process, those that its networks see."""
        config = self.config

        def mine(step: int) -> Tensor:
            return sampled.images(step, config.batch_size)

        return self.images.train_batches(
            config.images_per_step,
            config.seed,
            self.state.step,
            config.steps,
            config.augment,
            mine if config.own_images and self.world.size > 1 else None,
        )

    def _meta_batches(self, sampled: MetaBatches) -> Iterator[list[tuple[int, TargetNetwork]]]:
        """The networks of every step that is left, built ahead where there are workers."""
        steps = range(self.state.step, self.config.steps)
        workers = self.schedule.workers
        return iter(DataLoader(sampled, None, sampler=steps, num_workers=workers, collate_fn=list))


def _sources(config: TrainConfig, world: World, quiet: bool) -> tuple[Images, list[Net]]:
    """What a run trains on: images, and networks."""
    nets: list[Net] = []
    for space in config.space.split(",") if config.nets is not None else ():
        nets += load_nets(Path(str(config.nets)), TRAIN_SPLITS[space], config.num_nets)
    images = load_images(
        config.data, "train", config.image_size, config.holdout, world.device, progress=not quiet
    )
    if config.models is not None:
        nets += load_models(config, len(images.classes), world, quiet)
    return images, nets


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0, or a constant and a linear cooldown."""
    if config.cooldown and step >= config.warmup:
        return config.lr * min(1.0, (config.steps - step) / config.cooldown)
    return warmup_cosine(config.lr, step, config.steps, config.warmup)


def _count(state: State, finite: bool, config: TrainConfig) -> None:
    """Count a step, and stop a run that has gone astray."""
    state.step += 1
    state.failures = 0 if finite else state.failures + 1
    state.skipped += not finite
    if state.failures >= config.patience:
        raise GHNInitError(
            f"the loss was not finite in {state.failures} steps in a row, the last one step "
            f"{state.step}. Go on from the last checkpoint with --precision fp32, or give a "
            "smaller --lr and another --out."
        )
