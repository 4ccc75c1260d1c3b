"""Kept models: what is loaded measures what was recorded, and takes raw images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar_cases
import numpy as np
import pytest
import safetensors.torch
import sklearn.datasets
import sklearn.model_selection
import torch
from sweep_cases import tiny
from train_cases import Call, records

import wn
from wn import evaluate, trained
from wn.config import Config, UserError
from wn.data import sources
from wn.records import Record
from wn.sweep import train_sweep

SAVE = {"save": True, "epochs": 2}

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "initialised by data": {"norm": "weight_norm_init"},
    "statistics": {"norm": "batch_norm"},
    "an EMA": {"norm": "batch_norm", "optim": {"lr": 0.5, "ema_epochs": 1.0}},
    "noise": {"model": {"widths": [4], "noise": 0.3, "dropout": 0.2}},
    "bfloat16": {"trainer": {**SAVE, "precision": "bfloat16"}},
    "float64": {"trainer": {**SAVE, "precision": "float64"}},
    "binary pixels": {"data": {"binarize": True}},
    "nothing held out": {"data": {"valid_fraction": 0}},
    "a VAE": {"model": {"name": "mlp_vae", "widths": [4], "latents": 2}, "optim": {"lr": 0.01}},
    "a VAE of binary pixels": {
        "model": {"name": "mlp_vae", "widths": [4], "latents": 2},
        "data": {"binarize": True},
        "trainer": {**SAVE, "iwae_samples": 3, "iwae_images": 40},
    },
}


def train(folder: Path, **settings: Any) -> Record:
    (record,) = train_sweep([tiny(folder, **{"trainer": SAVE, **settings})])
    assert record.status == "finished"
    return record


def recorded(record: Record) -> dict[str, float]:
    final = record.content["final"].items()
    return {k: v for k, v in final if k.startswith(("valid", "test")) and v is not None}


@pytest.mark.parametrize("kind", RUNS)
def test_a_loaded_model_measures_what_was_recorded(kind: str, tmp_path: Path) -> None:
    """To the last digit, twice, and whatever it was used for in between."""
    record = train(tmp_path, **RUNS[kind])
    run = trained.load(record.folder)
    assert evaluate.evaluate(run) == recorded(record)
    run(raw_digits()[0][:3])
    assert evaluate.evaluate(run) == recorded(record)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    files = [(train(tmp_path / name, **RUNS["noise"]).folder / trained.FILE).read_bytes() for name in "abcd"]
    assert len(set(files)) == 1


def test_a_member_of_a_stack_differs_in_rounding_alone(tmp_path: Path) -> None:
    norms, seeds = ("none", "batch_norm"), (0, 1)
    configs = [tiny(tmp_path, norm, seed=seed, trainer=SAVE) for norm in norms for seed in seeds]
    for record in train_sweep(configs):
        assert len(record.content["stack"]) == 2
        measured = evaluate.evaluate(trained.load(record.folder))
        assert measured == pytest.approx(recorded(record), rel=1e-5)


def raw_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The test images as scikit-learn has them."""
    bunch = sklearn.datasets.load_digits()
    every = np.arange(len(bunch.target))
    split = sklearn.model_selection.train_test_split
    _, test = split(every, test_size=0.2, stratify=bunch.target, random_state=0)
    return bunch.images[test][:, None].astype(np.uint8), bunch.target[test]


@pytest.mark.parametrize("kind", ["plain", "statistics", "an EMA", "bfloat16", "float64"])
def test_it_takes_raw_images(kind: str, tmp_path: Path) -> None:
    record = train(tmp_path, **RUNS[kind])
    run = trained.load(record.folder)
    images, labels = raw_digits()
    with torch.no_grad():
        logits = run(images)
        assert torch.equal(logits, run(torch.from_numpy(images)))
    wrong = (logits.argmax(1).numpy() != labels).mean()
    assert wrong == record.content["final"]["test_error"]
    with pytest.raises(TypeError, match=r"float32.*as bytes"):
        run(images.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(5, 1, 8, 7\).*\('N', 1, 8, 8\)"):
        run(images[:5, :, :, :7])


def test_binary_pixels_are_drawn_with_the_grey_level_as_probability(tmp_path: Path) -> None:
    run = trained.load(train(tmp_path, **RUNS["a VAE of binary pixels"]).folder)
    images = np.repeat(raw_digits()[0][:1], 4000, axis=0)
    drawn = run.pipeline(images)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), images[0] / 16, atol=0.04)  # five standard deviations


def test_a_whitened_run_takes_raw_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", cifar_cases.TINY)
    cifar_cases.write_parquet(tmp_path)
    data = {"name": "cifar10", "root": str(tmp_path), "whiten": True, "valid_fraction": 0.25}
    data |= {"download": False}
    record = train(tmp_path / "runs", data=data, trainer={**SAVE, "batch_size": 4, "init_batch_size": 4})
    run = trained.load(record.folder)
    _, raw, _ = sources.official(run.config.data.model_copy(update={"whiten": False, "root": str(tmp_path)}))
    with torch.no_grad():
        wrong = (run(raw.images).argmax(1).numpy() != raw.labels).mean()
    assert wrong == record.content["final"]["test_error"]
    here = run.config.data.model_copy(update={"root": str(tmp_path)})
    cached = evaluate.dataset_of(run, here)
    assert evaluate.evaluate(run, cached) == recorded(record)
    assert torch.equal(run.pipeline(raw.images), cached.test.x)
    with pytest.raises(UserError, match=r"^data=digits: images of 1x8x8, and the model takes 3x\d+x\d+$"):
        evaluate.dataset_of(run, here.model_copy(update={"name": "digits"}))
    other = evaluate.dataset_of(
        run, here.model_copy(update={"whiten": False})
    )  # the run's pipeline all the same
    assert torch.equal(other.test.x, cached.test.x)


# Where a run is, and what is none


def test_a_run_is_found_by_folder_or_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "runs", trainer={"epochs": 2}, experiment_name="a")  # of the same run, without a model
    record = train(tmp_path / "runs", experiment_name="b", trainer={**SAVE, "force": True})
    run_id = record.content["run_id"]
    monkeypatch.chdir(tmp_path)
    assert wn.load is trained.load
    for run in (run_id, record.folder, str(record.folder), Path("runs/b") / run_id):
        assert trained.load(run).record.folder.resolve() == record.folder
    assert trained.load(run_id, runs_dir=tmp_path / "runs").config.run_id == run_id
    for wrong in (run_id[:-1], "runs/c/" + run_id, "b", "*"):
        with pytest.raises(UserError, match=f"^{re.escape(wrong)}: no run's folder, and no run_id in runs"):
            trained.load(wrong)
    with pytest.raises(UserError, match=r"kept no model \(finished\); trainer.save=true trainer.force=true"):
        trained.load("runs/a/" + run_id)


def test_a_damaged_copy_of_a_run_hides_no_whole_one(tmp_path: Path) -> None:
    bad = train(tmp_path / "runs", trainer={"epochs": 2}, experiment_name="a").folder
    good = train(tmp_path / "runs", experiment_name="b", trainer={**SAVE, "force": True}).folder
    assert bad.name == good.name
    (bad / "metrics.jsonl").write_text("{}\n")
    assert trained.load(good.name, runs_dir=tmp_path / "runs").record.folder == good
    (good / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        trained.load(good.name, runs_dir=tmp_path / "runs")


def other_model(path: Path) -> None:
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({f"other.{name}": t for name, t in state.items()}, path)


def smaller_model(path: Path) -> None:
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file(
        {name: t[:1].contiguous() if t.dim() else t for name, t in state.items()}, path
    )


class Intruder:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("trace"),)


CHECKSUM, OTHER = "model.safetensors: damaged", "trained by other code, whose model differs in"
SIGNED = r"model.safetensors: damaged \([^c]"  # by another word than checksum
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "model.safetensors: No such file"),
    "empty": (lambda path: path.write_bytes(b""), CHECKSUM),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), CHECKSUM),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Intruder())), CHECKSUM),
    "a signed pickle": (lambda path: path.write_bytes(pickle.dumps(Intruder())), SIGNED),
    "other names": (other_model, OTHER),
    "other shapes": (smaller_model, OTHER),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_is_not_the_run_s_is_refused_in_a_line(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = train(tmp_path)
    path = record.folder / trained.FILE
    change, line = DAMAGES[damage]
    change(path)
    if line in (OTHER, SIGNED):  # as code that has changed since would leave it
        model = {**record.content["model"], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        record.save(model=model)
    with pytest.raises(UserError, match=line) as caught:
        trained.load(record.folder)
    assert "\n" not in str(caught.value)
    assert not Path("trace").exists()


def test_a_run_with_a_plugin_is_loaded_with_that_very_file_alone(tmp_path: Path) -> None:
    record = train(tmp_path / "runs")
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("x = 1\n")
    other.write_text("x = 2\n")
    record.content["config"]["plugins"] = {"mine.py": hashlib.sha256(mine.read_bytes()).hexdigest()}
    for named in ([], [other]):
        with pytest.raises(UserError, match=r"trained with the code of mine\.py; (name it|it has changed)"):
            trained.check_plugins(record, named)
    trained.check_plugins(record, [other, mine])


def test_a_run_of_a_sweep_with_plugins_that_uses_none_needs_none(tmp_path: Path) -> None:
    record = train(tmp_path / "runs")
    plugins = {"mine.py": "0" * 64}
    record.save(config={**record.content["config"], "plugins": plugins})
    trained.load(record.folder)


# The commands


PAIR = "-m norm=none seed=0,1 trainer.epochs=1"


def test_a_single_run_keeps_its_model_and_a_sweep_does_not(call: Call, tmp_path: Path) -> None:
    def kept() -> dict[str, bool]:
        found = records(tmp_path / "runs/adhoc")
        files = {path.parent.name for path in tmp_path.glob("runs/adhoc/*/model.safetensors")}
        assert files == {run_id for run_id, content in found.items() if "model" in content}
        return {run_id: run_id in files for run_id in found}

    assert call("norm=none seed=7").status == 0
    assert list(kept().values()) == [True]
    assert call(PAIR).status == 0
    assert sum(kept().values()) == 1
    assert call("norm=none seed=8 trainer.save=false").status == 0
    assert sum(kept().values()) == 1
    assert call(f"{PAIR} experiment_name=other hydra/launcher=basic").status == 0
    assert not list(tmp_path.glob("runs/other/*/model.safetensors"))
    result = call(f"{PAIR} trainer.save=true")
    assert "2 of them kept no model; trainer.force=true trains again" in result.out
    assert call(f"{PAIR} trainer.save=true trainer.force=true").status == 0
    assert sum(kept().values()) == 3


def test_the_command_prints_the_recorded_metrics(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("seed=7").status == 0
    ((run_id, record),) = records(tmp_path / "runs/adhoc").items()
    capsys.readouterr()
    assert evaluate.main([run_id]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"runs/adhoc/{run_id}: mlp weight_norm sgd lr=0.1 seed=7, on digits"
    final = {k: v for k, v in record["final"].items() if k.startswith(("valid", "test"))}
    assert lines == [f"{name} {value!r} (record: {value!r})" for name, value in final.items()]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nobody"], "nobody: no run's folder"),
        (["RUN", "data=digit"], "data=digit: no such preset"),
        (["RUN", "data.whiten=true"], "data.whiten=true: give data=NAME, or data.KEY=VALUE with one of name"),
        (["RUN", "norm=none"], "norm=none: give data=NAME"),
        (["RUN", "data.valid_fraction=2"], "data.valid_fraction=2: "),
        (["RUN", "data.valid_fraction=0.5"], "data.valid_fraction: of the run's own data it stays 0.2; "),
        (["RUN", "data.train_fraction=0.5"], "data.train_fraction: of the run's own data it stays 1; "),
        (["RUN", "data.valid_fraction=[1"], "data.valid_fraction=[1: line 1: "),
        (["RUN", "plugins=[a"], "plugins=[a: line 1: "),
        (["RUN", "data=mnist", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["RUN", "data.root=nowhere", "data=mnist"], "data.root=nowhere: no such folder"),
        (["RUN", "--device=cuda:99"], "trainer.device=cuda:99: not available"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train(tmp_path)
    capsys.readouterr()
    assert evaluate.main([str(record.folder) if word == "RUN" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1


def test_other_images_go_through_the_run_s_own_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled by the mean and deviation of what it was trained on."""
    run = trained.load(train(tmp_path).folder)
    own = evaluate.dataset_of(run, run.config.data)
    fewer = evaluate.dataset_of(run, run.config.data.model_copy(update={"train_fraction": 0.1}))
    assert torch.equal(fewer.test.x, own.test.x)
    run.record.content["model"]["classes"] = 9
    with pytest.raises(UserError, match=r"^data=digits: 10 classes, and the model knows 9$"):
        evaluate.dataset_of(run, run.config.data)
    run.record.content["model"]["classes"] = 10
    run.pipeline = dataclasses.replace(run.pipeline, white=255)
    with pytest.raises(
        UserError, match=r"^data=digits: pixels of uint8 up to 16, and the .* uint8 up to 255$"
    ):
        evaluate.dataset_of(run, run.config.data)
    config: Config = run.config
    assert json.loads(json.dumps(run.record.content["model"]))["pipeline"]["mean"] == run.pipeline.mean
    assert config.trainer.save
