"""What a run is: the settings that decide its numbers, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
from record_cases import config_in, ended

from wn import experiments
from wn.config import Config, OptimConfig, TrainerConfig, decides, parse
from wn.config.compose import compose

RESULTS = Path(__file__).parent.parent / "results"
COMMITTED = sorted(path.parent.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("runs.csv"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_rows_keep_their_identity(name: str) -> None:
    """Every committed row is a run of its experiment as the code is now, with the settings that it says."""
    planned = {run.config.run_id: run for run in experiments.load(name).runs()}
    with open(RESULTS / name / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        config, cell, _ = planned[row["run_id"]]
        norm = cell["norm"] if " " in str(cell["norm"]) else config.norm.label  # or a preset and overrides
        assert (row["norm"], float(row["lr"]), int(row["seed"])) == (norm, config.optim.lr, config.seed)


def test_an_identity_lists_what_differs_from_the_defaults() -> None:
    config = compose({"norm": "batch_norm", "model": "convnet", "optim.lr": 0.5, "trainer.device": "cpu"})
    assert config.identity() == {
        "schema": 2,
        "seed": 0,
        "model": {"name": "convnet"},
        "norm": {"gain": "free", "statistics": "batch"},
        "optim": {"lr": 0.5},
    }


def test_a_field_that_is_added_changes_no_identity() -> None:
    class Later(OptimConfig):
        warmup: float = 0.0

    class LaterConfig(Config):
        optim: Later = Later()

    assert LaterConfig().run_id == Config().run_id
    assert LaterConfig(optim=Later(warmup=0.1)).run_id != Config().run_id


def test_models_with_equal_settings_are_told_apart() -> None:
    names = ("mlp", "convnet", "mlp_vae", "conv_vae", "resnet_vae", "transformer")
    assert len({compose({"model": name}).run_id for name in names}) == len(names)


OTHER_PLACE = {
    "data.root": "elsewhere",
    "data.download": False,
    "trainer.device": "cpu",
    "trainer.probe_every": 3,
    "trainer.max_minutes": 5.0,
    "trainer.compile": True,
    "trainer.iwae_images": 10,
    "trainer.deterministic": True,
    "trainer.progress": False,
    "trainer.checkpoint_every": 3,
    "tracking.mode": "disabled",
    "tracking.project": "another",
    "tracking.entity": "another",
    "runs_dir": "elsewhere",
    "experiment_name": "another",
}

OTHER_NUMBERS = {
    "data.name": "mnist",
    "data.valid_fraction": 0.1,
    "data.train_fraction": 0.1,
    "data.whiten": True,
    "trainer.epochs": 2,
    "trainer.batch_size": 50,
    "trainer.init_batch_size": 100,
    "trainer.precision": "bfloat16",
    "optim.name": "adam",
    "optim.lr": 0.2,
    "optim.lr_gain": 0.1,
    "optim.weight_decay": 1e-4,
    "norm.statistics": "mean_only",
    "norm.init": "data",
    "norm.eps": 1e-5,
    "model.widths": [4],
    "model.dropout": 0.5,
    "seed": 1,
}


@pytest.mark.parametrize("key", [*OTHER_PLACE, *OTHER_NUMBERS])
def test_a_setting_is_part_of_the_identity_or_of_the_place(key: str) -> None:
    value = {**OTHER_PLACE, **OTHER_NUMBERS}[key]
    base, other = compose({}), compose({key: value})
    assert decides(key) == (key in OTHER_NUMBERS) == (base.run_id != other.run_id)
    moved = base.placed_as(other)
    assert moved.run_id == base.run_id
    assert (moved == other) == (key in OTHER_PLACE)


def test_every_field_of_a_shared_section_is_known_to_decide_or_not() -> None:
    """A field that is added to trainer or data is free until it is listed: this list is a reminder."""
    free = {name for name in TrainerConfig.model_fields if not decides(f"trainer.{name}")}
    assert free == {
        *("device", "probe_every", "checkpoint_every", "max_minutes", "test_every", "iwae_samples"),
        *("iwae_images", "images", "deterministic", "compile", "cuda_graph", "progress", "dry_run"),
        *("save", "force"),
    }


def test_a_whole_number_is_the_float_that_it_is() -> None:
    assert compose({"optim.lr": 1}).run_id == compose({"optim.lr": 1.0}).run_id
    assert parse({"optim": {"lr": 1}}).optim.lr.hex() == (1.0).hex()


def test_a_run_id_reads_back_from_its_record() -> None:
    """What a record keeps of a configuration is enough to find its identity again."""
    config = compose({"norm": "weight_norm_mean_only_bn_init", "optim": "adam_paper", "data": "cifar10"})
    again = parse(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again.run_id == config.run_id


def test_run_id_is_pinned() -> None:
    # A change here gives every run of every user another name: raise SCHEMA and mean it.
    assert Config().run_id == "b908fe6fae49"


def test_run_id_is_the_hash_of_what_decides_the_numbers_and_is_not_at_its_default() -> None:
    numbers = {
        "schema": 2,
        "model": {"name": "mlp", "widths": [7]},
        "norm": {"gain": "free", "statistics": "batch"},
        "trainer": {"epochs": 2},
        "seed": 3,
    }
    text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
    del numbers["schema"]
    assert parse(numbers).run_id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_a_record_holds_all_of_its_run_s_identity(tmp_path: Path) -> None:
    config = config_in(tmp_path, seed=3, model={"widths": [7]}, norm={"gain": "free", "statistics": "batch"})
    content = json.loads((ended(config).folder / "record.json").read_text())
    assert parse(content["config"]).run_id == config.run_id == content["run_id"]
