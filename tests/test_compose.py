"""Presets and defaults: one source of each, and Hydra's composition is the plain composer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from wn import experiments, train
from wn.config import Config, UserError, parse
from wn.config.compose import CONFIGS, Value, compose
from wn.presets import PRESETS

ByHydra = Callable[[dict[str, Any]], Config]


@pytest.fixture(scope="module")
def by_hydra() -> Iterator[ByHydra]:
    """A configuration composed by Hydra itself, each preset and value given as an override."""
    train.register()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):

        def composed(settings: dict[str, Any]) -> Config:
            texts = {key: "null" if value is None else value for key, value in settings.items()}
            tree = hydra.compose("train", [f"{key}={value}" for key, value in texts.items()])
            return parse(OmegaConf.to_container(tree, resolve=True))  # type: ignore[arg-type]

        yield composed


def settings_of(run: experiments.Run, plan: experiments.Experiment) -> dict[str, Any]:
    own = next((row.set for row in plan.rows if row.name == run.row), {})
    found = {**plan.fixed, **own, "experiment_name": plan.name}
    for key, value in run.cell.items():
        found |= experiments.settings_of(key, value)
    return found


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_composed_as_hydra_composes_it(name: str, by_hydra: ByHydra) -> None:
    """One run of every norm or row, each at another place of the grid."""
    plan = experiments.load(name)
    groups: dict[tuple[Any, str | None], list[experiments.Run]] = {}
    for run in plan.runs():
        groups.setdefault((run.cell["norm"], run.row), []).append(run)
    for i, runs in enumerate(groups.values()):
        run = runs[7 * i % len(runs)]
        assert run.config == by_hydra(settings_of(run, plan))


@pytest.mark.parametrize("group", ["model", "optim", "data"])
def test_every_preset_is_composed_as_hydra_composes_it(group: str, by_hydra: ByHydra) -> None:
    for path in (CONFIGS / group).glob("*.yaml"):
        settings: dict[str, Value] = {group: path.stem, "optim.beta2": 0.9}
        if path.stem in ("mlp", "convnet"):
            settings["model.dropout"] = 0.2
        config = compose(settings)
        assert config == by_hydra(settings)
        assert getattr(config, group).name == path.stem.split("_paper")[0]
        assert config.optim.beta2 == 0.9


def test_norm_presets_are_those_of_the_library() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) or {} for path in (CONFIGS / "norm").glob("*.yaml")}
    assert files == PRESETS
    assert all(compose({"norm": name}).norm.label == name for name in PRESETS)


def test_the_default_learning_rate_is_one_number(by_hydra: ByHydra) -> None:
    assert (
        Config().optim.lr
        == compose({}).optim.lr
        == compose({"optim": "sgd"}).optim.lr
        == by_hydra({}).optim.lr
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "weight_nrm"}, "norm=weight_nrm: no such preset; did you mean 'weight_norm'"),
        ({"optim.lrr": 1}, "optim.lrr: unknown key; did you mean 'lr'"),
        ({"optim.lr": -1}, "optim.lr=-1: Input should be greater than 0"),
        ({"seed.x": 1}, "seed.x: seed is a value"),
    ],
)
def test_what_cannot_be_composed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(settings)
