"""Experiment files: each is checked whole, in one line that names file and key, and disturbs no other."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf._utils import get_yaml_loader
from train_cases import Call, records

from wn import experiments
from wn.config import UserError, compose
from wn.config.yaml_files import parse_yaml
from wn.report.__main__ import main as report
from wn.report.plan import of_experiment
from wn.report.status import status

HEAD = "title: t\nclaim: c\nfixed:\n  trainer.epochs: 2\n  trainer.batch_size: 500\n  model.widths: [4]\n"
GRID = "grid:\n  norm: [none, weight_norm]\n  optim.lr: [0.1]\n  seed: [0, 1]\n"
ROWS = "rows:\n- {name: WN, norm: weight_norm, lrs: [0.1]}\n- {name: BN, norm: batch_norm, lrs: [0.1]}\n"
GOOD = HEAD + GRID


def grid(old: str, new: str) -> str:
    assert old in GRID
    return HEAD + GRID.replace(old, new)


def rows(old: str, new: str) -> str:
    assert old in ROWS
    return HEAD + ROWS.replace(old, new) + "seeds: [0, 1]\n"


BAD: dict[str, tuple[str | bytes, str]] = {
    # spelling
    "zeros": (grid("[0, 1]", "[008, 009, 010]"), "line 10: 008 has several meanings"),
    "yes": (
        grid("[0, 1]", "[yes]"),
        "line 10: yes has several meanings in YAML; write true, or 'yes' for text",
    ),
    "no": (f"{HEAD}  trainer.deterministic: no\n{GRID}", "line 7: no has several meanings"),
    "sixty": (grid("[0, 1]", "[1:30]"), "line 10: 1:30 has several meanings"),
    "underscore": (grid("[0, 1]", "[1_000]"), "line 10: 1_000 has several meanings"),
    "date": (grid("[none", "[2001-01-01"), "line 8: 2001-01-01 has several meanings"),
    # given twice
    "key": (f"{HEAD}  model.widths: [5]\n{GRID}", "line 7: model.widths is given twice"),
    "grids": (GOOD + GRID, "line 11: grid is given twice"),
    "number": (grid("[0.1]", "[0.1, 1.0e-1]"), "norm=none, optim.lr=0.1, seed=0 and .* are the same run"),
    "seed": (grid("[0, 1]", "[0, 0]"), "seed=0 and norm=none, optim.lr=0.1, seed=0 are the same run"),
    "text_number": (grid("[0, 1]", "[1, '01']"), "seed=1 and .* seed=01 are the same run"),
    "preset": (grid("weight_norm", "none norm.eps=1e-6"), "norm=none norm.eps=1e-6, .* are the same run"),
    "row_run": (rows("batch_norm", "weight_norm"), "are the same run; leave out one of them"),
    "row_name": (rows("BN", "WN"), "two rows have the same name"),
    "fixed_axis": (f"{HEAD}  seed: 3\n{GRID}", "fixed: seed is an axis of the runs as well"),
    "set_axis": (rows("[0.1]}", "[0.1], set: {optim.lr: 0.2}}"), "row WN: set: optim.lr is an axis"),
    "arm_axis": (grid("weight_norm", "weight_norm optim.lr=1"), "optim.lr is an axis, and set by a value"),
    # shape
    "nested": (f"{HEAD}  optim: {{lr: 0.1}}\n{GRID}", "fixed optim: should be one value; .* as optim.lr"),
    "nested_axis": (grid("[0.1]", "[[0.1]]"), "grid optim.lr 1: should be one value"),
    "scalar_axis": (grid("[0.1]", "0.1"), "grid optim.lr: 0.1: Input should be a valid list"),
    "no_value": (grid("[0.1]", "[]"), r"grid optim.lr: \[\]: List should have at least 1 item"),
    "names": (grid("[0.1]", "{low: 0.1}"), "grid optim.lr: should be a list; only .* norm have names"),
    "no_name": (
        grid("[none, weight_norm]", "{}"),
        r"grid norm: \{\}: Dictionary should have",
    ),
    "nested_name": (grid("[none,", "[none, {a: none},"), "grid norm 2: should be one value"),
    "no_grid": (f"{HEAD}grid: {{}}\n", "the runs are a grid, or rows and seeds"),
    "no_seeds": (HEAD + ROWS, "the runs are a grid, or rows and seeds"),
    "grid_seeds": (f"{GOOD}seeds: [0]\n", "the runs are a grid, or rows and seeds"),
    "no_lrs": (rows("[0.1]}", "[]}"), r"rows 1 lrs: \[\]: List should have at least 1 item"),
    "missing": (GRID, "title: is missing; claim: is missing; fixed: is missing"),
    "unknown": (f"{GOOD}sedes: [0]\n", "sedes: unknown key; did you mean 'seeds'?"),
    "own_name": (f"{GOOD}name: other\n", "name: is that of the file; leave it out"),
    "place": (f"{HEAD}  experiment_name: other\n{GRID}", "fixed: experiment_name changes no run"),
    "tracking": (f"{HEAD}  tracking.project: p\n{GRID}", "fixed: tracking.project changes no run"),
    "no_field": (
        rows("[0.1]}", "[0.1], set: {trainer.epoch: 5}}"),
        "trainer.epoch: unknown key; did you mean 'epochs'",
    ),
    "no_number": (rows("[0.1]}", "[0.1], set: {trainer.save: true}}"), "trainer.save decides no number"),
    # values
    "text": (grid("[0.1]", "[0.1, abc]"), "optim.lr=abc: Input should be a valid number"),
    "row_text": (rows("[0.1]}", "[abc]}"), "rows 1 lrs 1: abc: Input should be a valid number"),
    "null": (grid("[0.1]", "[null]"), "optim.lr=None: Input should be a valid number"),
    "true": (grid("[0, 1]", "[true]"), "seed=true: Input should be a valid integer"),
    "huge_seed": (grid("[0, 1]", f"[{'9' * 30}]"), "seed=9+: Input should be less than"),
    "huge_lr": (grid("[0.1]", f"[{'9' * 400}]"), r"optim.lr=inf: Input should be a finite number"),
    "huge_text": (grid("[0, 1]", f"['{'9' * 5000}']"), r"seed=9{57}\.\.\.: "),
    "infinite": (grid("[0.1]", "[.inf]"), "optim.lr=inf: Input should be a finite number"),
    "no_preset": (grid("weight_norm", "weight_nrm"), "norm=weight_nrm: no such preset; did you mean"),
    "no_key": (grid("optim.lr", "optim.lrr"), "optim.lrr: unknown key; did you mean 'lr'?"),
    "fixed_group": (f"{HEAD}  nrm: none\n{GRID}", "nrm: unknown key; did you mean 'norm'?"),
    "fixed_preset": (f"{HEAD}  optim: sgdd\n{GRID}", "optim=sgdd: no such preset; did you mean 'sgd'?"),
    "arm_key": (
        grid("weight_norm", "weight_norm norm.epps=1"),
        "norm.epps: unknown key; did you mean 'eps'?",
    ),
    "arm_form": (grid("weight_norm", "weight_norm eps=1"), "should be a preset, then SECTION.FIELD=VALUE"),
    # size
    "cells": (
        GOOD + "".join(f"  optim.a{i}: {[*range(10)]}\n" for i in range(8)),
        "400,000,000 runs; .* 100,000",
    ),
    "seeds": (grid("[0, 1]", str([*range(100_000)])), "larger than 100,000 bytes"),
    "aliases": ("a: &a [0]\nb: [*a, *a]\n" + GOOD, r"line 2: \*a: aliases are not read; write the value out"),
    "deep": (f"{HEAD}  x: {'[' * 20_000}\n{GRID}", "line 7: nested more than 20 deep"),
    # what is no such file
    "empty": ("", "title: is missing"),
    "list": ("- 1\n", "should hold lines of KEY: VALUE"),
    "word": ("hello\n", "should hold lines of KEY: VALUE"),
    "open": ("title: [\n", "line 2: expected the node content"),
    "conflict": (f"<<<<<<< HEAD\n{GOOD}", "line 2: "),
    "nul": (f"{GOOD}\0", "unacceptable character #x0000"),
    "latin1": (GOOD.encode().replace(b"title: t", b"title: \xe9"), "'utf-8' codec can't decode byte 0xe9"),
    "code": (f"{HEAD}  model: !!python/name:os.system\n{GRID}", "line 7: could not determine a constructor"),
    "number_key": (f"{HEAD}  3: 4\n{GRID}", "line 7: a key should be text"),
    "documents": (f"{GOOD}---\n{GOOD}", "found another document"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(experiments, "FOLDER", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    experiments.FOLDER.mkdir()
    put("good", GOOD)
    return tmp_path


def put(name: str, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    (experiments.FOLDER / f"{name}.yaml").write_bytes(content)


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_before_any_run(folder: Path, name: str) -> None:
    text, message = BAD[name]
    put(name, text)
    with pytest.raises(UserError, match=message) as refused:
        experiments.load(name).runs()
    line = str(refused.value)
    assert line.startswith(f"experiments/{name}.yaml: ")
    assert "\n" not in line
    assert "pydantic" not in line
    assert len(line) < 250


def obstruct() -> None:
    """Files of every kind that cannot be read, and things that are no file."""
    for name, (text, _) in BAD.items():
        put(name, text)
    (experiments.FOLDER / "folder.yaml").mkdir()
    os.mkfifo(experiments.FOLDER / "pipe.yaml")
    (experiments.FOLDER / "dangling.yaml").symlink_to("nowhere")


def test_neighbours_that_are_bad_change_nothing_for_the_others(
    call: Call, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    obstruct()
    for words in ("+experiment=good", "norm=none"):
        result = call(words)
        assert (result.status, result.err) == (0, "")
    assert len(records(folder / "runs/good")) == 4
    for name in ("zeros", "pipe", "folder", "dangling"):
        result = call(f"+experiment={name}")
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert f"experiments/{name}.yaml" in result.err
    assert report(["good"]) == 0
    assert "runs/good/report/page.md" in capsys.readouterr().out
    assert report(["nested"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (folder / "runs/nested").mkdir()
    (folder / "runs/good").joinpath(next(iter(records(folder / "runs/good")))).rename(
        folder / "runs/nested/a"
    )
    assert report([]) == 0
    assert "left out: experiments/nested.yaml: fixed optim: " in capsys.readouterr().out
    lines = status(folder / "runs", folder / "results").splitlines()
    assert lines[1].split()[:3] == ["good", "4", "3"]
    assert {line.partition(":")[0] for line in lines[2:]} >= {f"experiments/{name}.yaml" for name in BAD}


# What is trained is what is reported

CONSISTENT = {
    "dotless": (grid("[0.1]", "[1e-4, 1e-3, 1e-2]"), 12),
    "root": (f"{HEAD}  data.root: there\n{GRID}", 4),
    "decay": (f"{HEAD}  optim.weight_decay: 1e-4\n{GRID}", 4),
    "own_preset": (grid("weight_norm", "mine"), 4),
    "quoted": (grid("[0.1]", "['1e-2', 0.1]"), 8),
    "no_seed": (HEAD + GRID.replace("  seed: [0, 1]\n", ""), 2),
    "no_norm": (HEAD + GRID.replace("  norm: [none, weight_norm]\n", ""), 2),
    "more_axes": (f"{GOOD}  model.activation: [relu, tanh]\n  model.weight_init: [he, paper]\n", 16),
    "arms": (grid("weight_norm", "weight_norm, weight_norm norm.eps=1e-3 optim.weight_decay=1e-4"), 6),
    "rows": (rows("batch_norm", "weight_norm norm.gain=fixed"), 4),
    "device": (f"{HEAD}  trainer.device: cpu\n{GRID}", 4),
}


@pytest.fixture
def own_preset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``norm=mine``, in configs/norm/, for the report. Hydra does not compose a cell of an experiment."""
    (folder / "configs/norm").mkdir(parents=True)
    for path in compose.CONFIGS.glob("*/*.yaml"):
        (folder / "configs" / path.parent.name).mkdir(exist_ok=True)
        (folder / "configs" / path.parent.name / path.name).write_bytes(path.read_bytes())
    (folder / "configs/train.yaml").write_bytes((compose.CONFIGS / "train.yaml").read_bytes())
    (folder / "configs/norm/mine.yaml").write_text("defaults: [weight_norm, _self_]\neps: 1e-3\n")
    monkeypatch.setattr(compose, "CONFIGS", folder / "configs")


@pytest.mark.usefixtures("own_preset")
@pytest.mark.parametrize("name", CONSISTENT)
def test_what_is_trained_is_what_is_reported(call: Call, folder: Path, name: str) -> None:
    text, count = CONSISTENT[name]
    put(name, text)
    result = call(f"+experiment={name}")
    assert (result.status, result.err) == (0, "")
    done = records(folder / f"runs/{name}")
    assert len(done) == count
    plan = of_experiment(name)
    assert done.keys() == plan.group_of.keys()
    assert len({group.name for group in plan.groups}) == len(plan.groups)
    line = status(folder / "runs", folder / "results").splitlines()[1:]
    assert [one.split()[1:3] for one in line if one.startswith(f"{name} ")] == [[str(count)] * 2]
    assert call(f"+experiment={name}").out == f"{count} runs: {count} done before, 0 to train\n"


def test_a_preset_and_overrides_are_a_row_of_their_own(call: Call, folder: Path) -> None:
    arm = "weight_norm norm.eps=1e-3"
    put("arms", grid("weight_norm", f"weight_norm, {arm}"))
    plan = of_experiment("arms")
    assert [group.name for group in plan.groups] == ["none", "weight_norm", arm]
    assert plan.facets == ()
    assert [group.first.norm.eps for group in plan.groups] == [1e-6, 1e-6, 1e-3]
    result = call(f"+experiment=arms norm={arm} seed=1")
    assert (result.status, result.err) == (0, "")
    (record,) = records(folder / "runs/arms").values()
    assert (record["config"]["norm"]["eps"], record["config"]["seed"]) == (1e-3, 1)
    assert call("+experiment=arms norm.eps=1e-2").status == 2


def test_names_of_norms_change_no_run(folder: Path) -> None:
    arm = "weight_norm norm.eps=1e-3"
    put("list", grid("weight_norm", f"weight_norm, {arm}"))
    put("names", grid("[none, weight_norm]", f"{{plain: none, weight norm: weight_norm, other eps: {arm}}}"))
    plain, named = of_experiment("list"), of_experiment("names")
    assert list(plain.group_of) == list(named.group_of)
    assert [group.norm for group in named.groups] == [group.norm for group in plain.groups]
    assert [group.name for group in named.groups] == ["plain", "weight norm", "other eps"]
    assert named.facets == ()


# One reading of YAML

WORDS = ["yes", "No", "ON", "off", "true", "False", "null", "~", ".inf", "-.inf", ".nan", "y", "n", "<<", "="]
WORDS += ["1e-3", "008", "010", "0x1F", "0o7", "0b1", "2001-01-01", "1:30", "190:20:30.15", "1_0e5", "._5"]


def test_a_value_that_is_read_means_the_same_to_hydra() -> None:
    """Presets are read by Hydra for a run, and by the report for an experiment; or a number is text to it."""
    draw, loader = random.Random(0), get_yaml_loader()
    drawn = ["".join(draw.choices("0123456789+-._:eExobaf", k=draw.randint(1, 6))) for _ in range(4000)]
    read = 0
    for word in WORDS + drawn + [f"{i / 7:.{i % 5}{'efg'[i % 3]}}" for i in range(300)]:
        try:
            mine = parse_yaml(f"x: {word}")["x"]
        except ValueError:
            continue
        theirs: Any = yaml.load(f"x: {word}", loader)["x"]
        if isinstance(theirs, str) and not isinstance(mine, str):
            theirs = float(theirs)  # as pydantic reads it
        assert mine == theirs or repr(mine) == repr(theirs) == "nan", word
        read += not isinstance(mine, str)
    assert read > 500


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("eps: 010\n", "configs/norm/mine.yaml: line 1: 010 has several meanings"),
        ("eps: 1e-3\neps: 1e-4\n", "configs/norm/mine.yaml: line 2: eps is given twice"),
        (
            "defaults: [/optim/sgd]\n",
            "configs/norm/mine.yaml: defaults should be a list of other presets of norm",
        ),
    ],
)
def test_a_preset_that_could_be_read_in_two_ways_is_refused(
    folder: Path, own_preset: None, preset: str, message: str
) -> None:
    (folder / "configs/norm/mine.yaml").write_text(preset)
    for attempt in (
        lambda: compose.compose({"norm": "mine"}),
        lambda: compose.check_presets({"norm": "mine"}),
    ):
        compose._preset.cache_clear()
        with pytest.raises(UserError, match=message):
            attempt()


def test_defaults_of_a_preset_stand_where_they_are_named(folder: Path, own_preset: None) -> None:
    for text, gain in (
        ("[weight_norm, _self_]", "fixed"),
        ("[weight_norm]", "fixed"),
        ("[_self_, weight_norm]", "free"),
    ):
        (folder / "configs/norm/mine.yaml").write_text(f"defaults: {text}\ngain: fixed\n")
        compose._preset.cache_clear()
        assert compose.compose({"norm": "mine"}).norm.gain == gain
