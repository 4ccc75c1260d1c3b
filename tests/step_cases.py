"""Trainers of small networks of each model, and what some steps make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sweep_cases import tiny

from wn.config import Config, parse
from wn.data import Dataset, Split
from wn.trainer import Observer, Trainer

PRESETS = {
    "none_init": {"init": "data"},
    "scaled_init": {"gain": "fixed", "init": "data"},
    "weight_norm": {"direction": "row", "gain": "free"},
    "batch_norm": {"gain": "free", "statistics": "batch"},
    "weight_norm_mean_only_bn_init": {
        "direction": "row",
        "gain": "free",
        "statistics": "mean_only",
        "init": "data",
    },
}
TREES = ("params", "buffers", "moments", "average")
MLP = {"name": "mlp", "widths": [4]}
CONVNET = {"name": "convnet", "width": 4, "depth": 1}
SMALL = {"latents": 3, "flow_width": 6, "posterior": "iaf", "free_bits": 0.1, "kl_warmup_steps": 4}
TRANSFORMER = {"name": "transformer", "patch": 4, "width": 4, "heads": 2, "depth": 1}
VAES: dict[str, dict[str, Any]] = {
    "mlp_vae": {"widths": [9], **SMALL},
    "conv_vae": {"channels": [3, 4], "hidden": 7, **SMALL},
    "resnet_vae": {"channels": 4, "depth": 2, **SMALL},
}


def noisy(folder: Path, norm: str, lr: float, seed: int = 0, **trainer: Any) -> Config:
    """A small network with noise and dropout, trained by the authors' Adam with momentum that changes."""
    plain = tiny(folder, lr=lr, seed=seed).model_dump(mode="json")
    optim = {"name": "adam", "lr": lr, "schedule": "constant_then_linear", "eps_inside_root": True}
    settings = {**plain["trainer"], "batch_size": 20, "init_batch_size": 20, **trainer}
    return parse({**plain, "model": CONVNET, "norm": PRESETS[norm], "optim": optim, "trainer": settings})


def transformer(config: Config) -> Config:
    return parse({**config.model_dump(mode="json"), "model": TRANSFORMER})


def trainer_of(configs: list[Config], device: str = "cpu") -> Trainer:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(100, 3, 12, 12, generator=draw).to(device)
    split = Split(x=x, y=torch.arange(100, device=device) % 10)
    dataset = Dataset(split, split, split, classes=10)
    trainer = Trainer(configs, dataset, torch.device(device), Observer())
    trainer._initialize()
    trainer.stack.train()
    return trainer


def steps_of(trainer: Trainer, count: int) -> dict[str, torch.Tensor]:
    """Parameters, moments, buffers and totals after some steps."""
    for batch in torch.split(trainer._orders(1), 20, dim=1)[:count]:
        trainer.update(batch)
    state = trainer.state()
    trees = {f"{tree}/{k}": t for tree in TREES for k, t in state[tree].items()}
    return {**trees, "totals": state["totals"]}


def pair(folder: Path, norm: str, members: int, **trainer: Any) -> list[Config]:
    return [noisy(folder, norm, lr, seed, **trainer) for seed, lr in enumerate((0.003, 0.01)[:members])]


def vaes(folder: Path, name: str, members: int, **trainer: Any) -> list[Config]:
    """Small VAEs, their parameters averaged, under the norm that keeps the most state."""
    changes = {"model": {"name": name, **VAES[name]}, "norm": PRESETS["weight_norm_mean_only_bn_init"]}
    changes["optim"] = {"name": "adamax", "lr": 0.002, "momentum": 0.9, "ema_epochs": 1.0}
    changes["optim"]["eps"] = 1e-2  # without which the sign of a gradient's rounding is a step
    plain = [config.model_dump(mode="json") for config in pair(folder, "none_init", members, **trainer)]
    return [parse({**config, **changes}) for config in plain]
