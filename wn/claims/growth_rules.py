"""What lets ||v|| grow, or not: noise of gradients (B3), update rules (B4), a penalty on v (B9)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wn import probes
from wn.claims.growth import ARMS, LONGER, NOISE, SEEDS, config, final, half_decades, line
from wn.claims.lengths import directions, squares
from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rows import Row, per_quantity, row
from wn.claims.training import AfterStep, Watch, data_of, train, watched
from wn.config import Config
from wn.norm import normalized_layers
from wn.trainer import Trainer

STEPS = 287  # an epoch in batches of four
BATCHES = (4, 16, 64, 256, None)  # None: all images
NOISE_RATES = {"mlp": 0.03, "vae": 0.003}


@measurement("B3")
def noisy_gradients() -> Iterator[Part]:
    """(||v||^4 - ||v_0||^4) / (2 lr^2 g^2 T) against 1/B (section 2.1)."""
    for model in NOISE_RATES:
        for arm in ("weight normalisation", "plain weights"):
            yield Part(file_name(model, arm), partial(_by_batch, model, arm))


def _by_batch(model: str, arm: str) -> list[Row]:
    condition, lr = f"{model}, SGD", NOISE_RATES[model]
    images = len(data_of(config(condition, lr, 0)).train.x)
    growths = {
        size or images: growth_at(condition, lr, size or images, images, {**ARMS[arm], **NOISE[model]})
        for size in BATCHES
    }
    name = "" if arm == "weight normalisation" else f" of {arm}"
    x, rows = [1 / size for size in growths], []
    for i, seed in enumerate(SEEDS):
        y = [float(growth[i]) for growth in growths.values()]
        slope, fit = line(x, y)
        judged = {"slope": slope / float(np.mean(y)), "linearity": fit}
        judged = {f"control {key}{name}" if name else key: value for key, value in judged.items()}
        rows += per_quantity(condition, seed, judged)
        rows += [row(condition, f"growth{name}", seed, value, at) for at, value in zip(x, y, strict=True)]
    return rows


def growth_at(condition: str, lr: float, size: int, images: int, changes: dict[str, Any]) -> Tensor:
    """Mean over units of (||v||^4 - ||v_0||^4) / (2 lr^2 g^2 T) after T steps, for each seed.

    g^2 is the mean over steps of ||w||^2, which is g^2 where weights are normalised.
    """
    sizes = {"trainer.batch_size": size, "trainer.epochs": math.ceil(STEPS / (images // size))}
    configs = [
        config(condition, lr, seed, **{**changes, **sizes, "trainer.probe_every": 1000}) for seed in SEEDS
    ]
    found: list[Tensor] = []

    def prepare(trainer: Trainer) -> AfterStep:
        start, gains = squares(directions(trainer)), []

        def after_step(trainer: Trainer) -> None:
            if trainer.step <= STEPS:
                gains.append(squares(probes.snapshot(trainer.stack)))
            if trainer.step == STEPS:
                change = squares(directions(trainer)) ** 2 - start**2
                found.append((change / (2 * lr**2 * torch.stack(gains).mean(0) * STEPS)).mean(1))

        return after_step

    train(configs, prepare=prepare)
    return found[0]


OPTIMIZERS = {
    "mlp, momentum": (1e-3, 10.0),
    "mlp, Adam": (1e-4, 1.0),
    "mlp, Adamax": (1e-4, 1.0),
    "vae, momentum": (1e-5, 1.0),
    "vae, Adam": (1e-4, 1.0),
    "vae, Adamax": (1e-4, 1.0),
}
DESCENT = {"mlp, momentum": (1e-2, 10.0), "vae, momentum": (1e-4, 1.0)}
"""Of the control, plain gradient descent: the condition that it stands beside, and learning rates."""


@measurement("B4h", LONGER)
@measurement("B4", 1)
def other_rules(times: int) -> Iterator[Part]:
    """Growth of ||v|| and of the direction's learning rate at the rate that is the best (section 2.1)."""
    for condition, rates in OPTIMIZERS.items():
        yield Part(file_name(condition), partial(_at_best, condition, condition, rates, times))
    for condition, rates in DESCENT.items():
        model = condition.split(", ")[0]
        yield Part(f"{model}-SGD", partial(_at_best, condition, f"{model}, SGD", rates, times))


def _at_best(shown: str, condition: str, between: tuple[float, float], times: int) -> list[Row]:
    """Rows of the best learning rate, of ten times that, and of all."""
    rates = half_decades(*between)
    members = [(seed, lr) for seed in SEEDS for lr in rates]
    starts: list[Tensor] = []

    def prepare(trainer: Trainer) -> AfterStep:
        starts.append(squares(directions(trainer)))
        return lambda trainer: None

    unwatched = {"trainer.probe_every": 1000}
    configs = [config(condition, lr, seed, times, **unwatched) for seed, lr in members]
    watch, start = train(configs, prepare=prepare), starts[0]
    losses = {
        lr: np.mean([final(watch, i, "valid_loss") for i, m in enumerate(members) if m[1] == lr])
        for lr in rates
    }
    best = min(rates, key=lambda lr: losses[lr])
    judged, higher = best not in (rates[0], rates[-1]), half_decades(10 * best, 10 * best)[0]
    prefixes = {best: "" if judged else "edge ", higher: "control ten times the rate: "}
    if shown != condition:
        prefixes = {best: "control gradient descent: "}
    power = 2 if condition.endswith(("SGD", "momentum")) else 1
    rows = [row(shown, f"{prefixes[best]}best rate", 0, best)]
    for i, (seed, lr) in enumerate(members):
        model = watch.models[i]
        ends = model if model is None else {k: t[None] for k, t in model.items() if k.endswith(".v")}
        numbers = dict.fromkeys(("grown", "growth", "direction rate"), math.nan)
        if ends is not None:
            growth = (squares(ends)[0] / start[i]).sqrt()
            numbers["grown"] = (growth > 1).double().mean().item()
            numbers["growth"] = growth.median().item()
            numbers["direction rate"] = (growth**-power).mean().item()
        for name, value in numbers.items():
            rows.append(row(shown, f"{name} by rate, {condition}", seed, value, lr))
            if lr in prefixes:
                rows.append(row(shown, prefixes[lr] + name, seed, value))
    return rows


RATE, PENALTY = 0.3, 0.005
EPOCHS = 150  # of eleven steps
MANY_SEEDS = range(20)  # an equivalence is to be shown
EVERY = 10  # steps between two angles


@measurement("B9")
def penalty() -> Iterator[Part]:
    """Angle in equilibrium over sqrt(2 lr lambda); result against ||v|| held (van Laarhoven, 2017)."""
    yield Part("mlp-SGD", _penalised)


class SecondHalf:
    """Mean squares over every tenth step of the second half, ``[members, units]``: of angles, and ||v||^2.

    Call it after every step. No member may diverge.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.before: dict[str, Tensor] = {}
        self.angles, self.squares, self.steps = torch.zeros(()), torch.zeros(()), 0

    def __call__(self, trainer: Trainer) -> None:
        if 2 * trainer.step < trainer.total:
            return
        if trainer.step % EVERY == EVERY - 1:
            self.before = _unit_rows(trainer)
        elif trainer.step % EVERY == 0 and self.before:
            now = _unit_rows(trainer)
            chords = squares({name: now[name] - before for name, before in self.before.items()})
            self.angles = self.angles + (2 * torch.asin(chords.sqrt() / 2)) ** 2
            self.squares = self.squares + squares(directions(trainer))
            self.steps += 1


def _unit_rows(trainer: Trainer) -> dict[str, Tensor]:
    rows = {name: v.flatten(2) for name, v in directions(trainer).items()}
    return {name: v / v.norm(dim=-1, keepdim=True) for name, v in rows.items()}


def penalised(penalty: float) -> tuple[Watch, SecondHalf]:
    """All seeds as one stack, with a penalty on v."""
    return watched(_configs({"optim.weight_decay": penalty}), SecondHalf)


def held(norms: Tensor) -> Watch:
    """The same without penalty, ||v|| held at ``norms`` [members, units] from the start."""

    def prepare(trainer: Trainer) -> AfterStep:
        hold_at(trainer, norms)
        return lambda trainer: None

    return train(_configs(ARMS["held weights"]), prepare=prepare)


def _configs(changes: dict[str, Any]) -> list[Config]:
    all_changes = {"trainer.epochs": EPOCHS, "trainer.probe_every": 1000, **NOISE["mlp"], **changes}
    return [config("mlp, SGD", RATE, seed, **all_changes) for seed in MANY_SEEDS]


def hold_at(trainer: Trainer, norms: Tensor) -> None:
    """Scale v of every unit to its norm ``[members, units]``, and hold it there: the same function (A4)."""
    done = 0
    for name in normalized_layers(trainer.stack.template):
        held, v = trainer.stack.buffers[f"{name}.held"], trainer.stack.params[f"{name}.v"].detach()
        own = norms[:, done : done + held.shape[1]]
        v *= (own / v.flatten(2).norm(dim=-1)).to(v.dtype).view(*own.shape, *[1] * (v.dim() - 2))
        held.copy_(own)
        done += held.shape[1]


def _penalised() -> list[Row]:
    expected = math.sqrt(2 * RATE * PENALTY)
    watch, second = penalised(PENALTY)
    _, free = penalised(0.0)
    other = held((second.squares / second.steps).sqrt())
    rows = []
    for i, seed in enumerate(MANY_SEEDS):
        errors = [100 * _late_error(of, i) for of in (watch, other)]
        numbers = {
            "angle": (second.angles[i] / second.steps).sqrt().mean().item() / expected,
            "control angle without penalty": (free.angles[i] / free.steps).sqrt().mean().item() / expected,
            "difference": errors[0] - errors[1],
            "control error with penalty": errors[0],
            "control error with ||v|| held": errors[1],
        }
        rows += per_quantity("mlp, SGD", seed, numbers)
    return rows


def _late_error(watch: Watch, member: int) -> float:
    """Validation error, mean over the second half's epochs."""
    errors = [row["valid_error"] for row in watch.metrics[member]]
    return float(np.mean(errors[len(errors) // 2 :]))
