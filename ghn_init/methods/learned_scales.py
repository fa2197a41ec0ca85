"""Methods that learn one factor for each parameter, by gradient descent: what they share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.methods.method import Given, Job
from ghn_init.methods.trial import Trial
from ghn_init.progress import Progress
from ghn_init.resuming import ResultsFile

_SAVE_EVERY = 5.0
"""Seconds between two writes of the state."""

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Goal:
    """What one step descends.

    Arguments:
        value: a number that depends on the factors.
        constraint: it is a constraint that is broken, and not the objective.
    """

    value: Tensor
    constraint: bool = False


class Rule(Protocol):
    """How factors follow a gradient; `vars` of it is its state."""

    factors: list[float]

    def update(self, gradient: Sequence[float], constraint: bool) -> None:
        """Make a step."""


@dataclass(frozen=True)
class Learning:
    """One method's way to learn factors.

    Arguments:
        name: of the method.
        rule: gives the rule for the names and norms of the parameters.
        goal: what the step of a number descends, for values of all parameters.
        figures: what the method makes better, in words and numbers, for the report.
    """

    name: str
    rule: Callable[[Sequence[str], Sequence[float]], Rule]
    goal: Callable[[Values, int], Goal]
    figures: Callable[[Values], dict[str, float]]


def learn(job: Job, tried: Trial, how: Learning, names: Sequence[str]) -> Given:
    """Learn a factor for each of the parameters; it starts from 1.

    Arguments:
        job: its options have `steps`.
        tried: the model to try values on.
        how: the method.
        names: parameters that may get a factor. Those that are zero keep none.

    Raises:
        GHNInitError: a loss or gradient that is not finite, a model that cannot be differentiated
            as often as the method needs, or a file of another state.
    """
    norms = {name: tried.start[name].double().norm().item() for name in names}
    scaled = [name for name, norm in norms.items() if norm > 0]
    if not scaled or not tried.trained:
        raise GHNInitError(
            f"{how.name} has no parameter to scale: none may be written and trained."
        )
    rule = how.rule(scaled, [norms[name] for name in scaled])
    done, steps = 0, job.options.steps
    state = _state_file(job, tried, how.name)
    if state.rows:
        done, content = state.rows[0]
        vars(rule).update(content)
    before = _figures(how, tried.start)
    with Progress(steps, "step", done, job.silent) as line, torch.enable_grad():
        saved = time.monotonic()
        for step in range(done, steps):
            goal, gradient = _descent(tried, how, scaled, rule.factors, step)
            rule.update(gradient, goal.constraint)
            if time.monotonic() - saved > _SAVE_EVERY or step + 1 == steps:
                saved = time.monotonic()
                state.rows[:] = [(step + 1, dict(vars(rule)))]
                state.write()
            line.step(method=how.name, goal=f"{goal.value.item():.4g}")
    factors = dict(zip(scaled, rule.factors, strict=True))
    tensors = {name: tried.start[name] * factor for name, factor in factors.items()}
    after = _figures(how, {**tried.start, **tensors})
    changes = [f"{what} {before[what]:.4g} before and {after[what]:.4g} after" for what in before]
    note = (
        f"{how.name}, {steps} steps: {', '.join(changes)}; factors from "
        f"{min(factors.values()):.3g} to {max(factors.values()):.3g}"
    )
    return Given({name: tensor.float() for name, tensor in tensors.items()}, notes=(note,))


def _descent(
    tried: Trial, how: Learning, names: Sequence[str], factors: Sequence[float], step: int
) -> tuple[Goal, list[float]]:
    """What a step descends, and its gradient with respect to the factors."""
    dtype = tried.start[names[0]].dtype
    leaf = torch.tensor(factors, dtype=dtype, device=tried.device, requires_grad=True)
    values = dict(tried.start)
    for name, factor in zip(names, leaf.unbind(), strict=True):
        values[name] = factor * tried.start[name]
    for name in tried.trained:
        if not values[name].requires_grad:  # it has a gradient, but no factor
            values[name] = values[name].detach().requires_grad_()
    try:
        goal = how.goal(values, step)
        (gradient,) = torch.autograd.grad(goal.value, leaf, allow_unused=True)
    except RuntimeError as error:  # torch's, of an operator without such a derivative
        reason = str(error).partition("\n")[0]
        raise GHNInitError(f"{how.name} cannot differentiate the model: {reason}") from error
    found = [0.0] * len(names) if gradient is None else gradient.double().tolist()
    if not math.isfinite(goal.value.item()) or not all(map(math.isfinite, found)):
        raise _not_finite(how.name, step)
    return goal, found


def _figures(how: Learning, start: Values) -> dict[str, float]:
    values = {n: v.detach().requires_grad_(v.is_floating_point()) for n, v in start.items()}
    with torch.enable_grad():
        found = how.figures(values)
    if not all(map(math.isfinite, found.values())):
        raise _not_finite(how.name, 0)
    return found


def _not_finite(name: str, step: int) -> GHNInitError:
    when = f"after {step} steps: give a smaller lr" if step else "at the start"
    advice = "" if step else f": make activations smaller first, as 'orth+lsuv+{name}' does"
    return GHNInitError(f"{name}: the loss or its gradient is not finite {when}{advice}.")


def _state_file(job: Job, tried: Trial, name: str) -> ResultsFile[tuple[int, dict[str, Any]]]:
    """How far a run of the same arguments is."""
    options = {key: value for key, value in asdict(job.options).items() if key != "steps"}
    settings = {} if job.state is None else {
        "method": name, **options, "seed": job.seed, "start and images": tried.digest(),
        "parameters": sorted(job.writable),
    }  # fmt: skip
    return ResultsFile(
        job.state,
        settings,
        lambda row: (int(row["step"]), dict(row["rule"])),
        lambda row: {"step": row[0], "rule": row[1]},
        ("settings", "state"),
    )
