"""Claims about section 5: values of runs with known metrics, and which runs they are of."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from wn import experiments
from wn.claims import criteria, known, rates_convnet, section5
from wn.claims.known import Trained
from wn.claims.measuring import MEASUREMENTS
from wn.config import UserError
from wn.report.claims.verdicts import Verdict, judge
from wn.sweep import train_sweep

ROOT = Path(__file__).resolve().parent.parent

ERRORS = {"WN + MOBN": 0.20, "BN": 0.22, "WN": 0.25, "normal": 0.253, "MOBN": 0.247}


def run(test: float = 0.2, train: float = 0.5, epochs: int = 16) -> Trained:
    """A classifier whose training error is ``train`` in epoch 8, and far higher before and after."""
    rows = [
        {"epoch": 0},
        *({"epoch": e, "train_error": train if e == 8 else 0.99} for e in range(1, epochs + 1)),
    ]
    return Trained(rows, {"test_error": test} if epochs == 16 else {})


def test_differences_of_test_errors_are_in_points():
    runs = {name: run(test=error) for name, error in ERRORS.items()}
    found = section5.lowest(runs)
    assert found["BN less WN + MOBN"] == pytest.approx(2)
    assert found["WN less WN + MOBN"] == pytest.approx(5)
    same = section5.same(runs)
    assert same["WN less normal"] == pytest.approx(-0.3)
    assert same["MOBN less WN"] == pytest.approx(-0.3)
    assert {*criteria.load("L1").quantities} <= {*found}
    assert {*criteria.load("L3").quantities} <= {*same}


def test_training_errors_are_those_of_half_the_epochs():
    runs = {name: run(train=error) for name, error in ERRORS.items()}
    found = section5.faster(runs)
    assert found["normal less BN"] == pytest.approx(3.3)
    assert found["normal less WN"] == pytest.approx(0.3)
    assert {*criteria.load("L2").quantities} <= {*found}


def test_what_diverged_counts_at_chance_from_then_on():
    late, early = run(train=0.3, epochs=9), run(train=0.3, epochs=5)
    assert (late.test_error, late.train_error(8)) == (90, pytest.approx(30))
    assert early.train_error(8) == 90
    assert run(train=0.3, epochs=8).train_error(8) == 90  # in that epoch


def test_a_bound_that_is_no_number_is_none():
    ended = Trained([{"epoch": 0.0, "test_loss": 400.0}, {"epoch": 10.0, "test_loss": None}], {})
    assert ended.bounds.tolist() == [[0.0, -400.0]]


def vae(*bounds: float) -> Trained:
    """The bounds after epochs 0, 10, 20, ...; an epoch without an evaluation between them."""
    rows = [{"epoch": 10.0 * i, "test_loss": -bound} for i, bound in enumerate(bounds)]
    return Trained([rows[0], {"epoch": 5.0}, *rows[1:]], {"test_loss": -bounds[-1]})


def test_a_bound_that_is_reached_sooner():
    """Plain weights are highest, at -86, after 40 epochs; the other passes -86 half way from 20 to 30."""
    found = section5.converges(
        {"normal": vae(-400, -94, -90, -88, -86, -86.5), "WN": vae(-400, -94, -88, -84, -84, -84)}
    )
    assert found["faster"] == pytest.approx(25 / 40)
    assert found["better"] == pytest.approx(2.5)
    assert {*criteria.load("M1").quantities} <= {*found}


def test_the_level_is_one_that_both_reach():
    """Plain weights end lower, at -87, which they have after 30 epochs, and the other half way to its 20."""
    found = section5.converges({"normal": vae(-400, -90, -88, -87), "WN": vae(-400, -88, -86, -86)})
    assert (found["faster"], found["better"]) == (pytest.approx(15 / 30), pytest.approx(1))
    back = section5.converges({"WN": vae(-400, -90, -88, -87), "normal": vae(-400, -88, -86, -86)})
    assert (back["faster"], back["better"]) == (pytest.approx(30 / 15), pytest.approx(-1))


def test_what_diverged_has_the_bound_that_it_began_with():
    """The other has its best, -88, after 20 of 30 epochs."""
    ended, diverged = vae(-400, -90, -88, -89), Trained(vae(-401, -95).epochs, {})
    found = section5.converges({"normal": ended, "WN": diverged})
    assert (found["faster"], found["better"]) == (pytest.approx(30 / 20), pytest.approx(-401 + 89))
    found = section5.converges({"normal": diverged, "WN": ended})
    assert (found["faster"], found["better"]) == (pytest.approx(20 / 30), pytest.approx(401 - 89))
    assert section5.converges({"normal": diverged, "WN": diverged}) == {}


def test_where_a_line_first_reaches_a_level():
    points = np.array([[0, -10.0], [10, -6], [20, -8], [30, -4]])
    assert section5.reached(points, -8) == 5
    assert section5.reached(points, -5) == 27.5
    assert section5.reached(points, -20) == 0


def test_the_curves_of_the_paper_meet_the_criterion_on_the_vae():
    """As digitised, with n as if there were five seeds: the criterion tells the figure's two curves apart."""
    tree: Any = yaml.safe_load((experiments.FOLDER / "paper" / "figure3_mnist.yaml").read_text())
    curves = {name: [p for p in points if p[0] <= 100] for name, points in tree["curves"].items()}
    runs = {
        name: Trained([{"epoch": e, "test_loss": -bound} for e, bound, _ in points], {"test_loss": 0.0})
        for name, points in curves.items()
    }
    found = section5.converges(runs)
    assert found["faster"] == pytest.approx(92.77 / 100, abs=0.001)
    back = section5.converges({"normal": runs["WN"], "WN": runs["normal"]})
    spread, claim = 0.01 * np.arange(-2, 3), criteria.load("M1")

    def verdict(values: dict[str, float]) -> Verdict:
        return judge(claim, {"vae, MNIST": {name: values[name] + spread for name in claim.quantities}})

    assert verdict(found).word == "confirmed"
    assert verdict(back).word == "refuted"


TABLE = {
    "title": "t",
    "claim": "c",
    "fixed": {"model.widths": [4], "trainer.epochs": 1, "trainer.batch_size": 500, "trainer.device": "cpu"},
    "rows": [
        {"name": "normal", "norm": "none_init", "lrs": [0.1], "chosen": 0.2},
        {"name": "WN", "norm": "weight_norm_init", "lrs": [0.1], "chosen": 0.1},
        {"name": "other", "norm": "none", "lrs": [0.1]},
    ],
    "seeds": [0, 1],
    "chosen_by": "selection",
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(experiments, "FOLDER", tmp_path / "experiments")
    experiments.FOLDER.mkdir()
    (experiments.FOLDER / "table.yaml").write_text(yaml.safe_dump(TABLE))
    monkeypatch.chdir(tmp_path)
    section5.trained.cache_clear()
    known.committed.cache_clear()
    return "table"


def test_runs_are_those_of_the_experiment_at_the_chosen_rate(table: str, tmp_path: Path):
    found = section5.trained(table, ("normal", "WN"), 1)
    configs = section5.configs_of(table, ("normal", "WN"), 1)
    assert [(name, c.optim.lr, c.seed) for name, c in configs.items()] == [("normal", 0.2, 1), ("WN", 0.1, 1)]
    recorded = {path.parent.name for path in tmp_path.glob("runs/table/*/record.json")}
    assert (
        recorded
        == {c.run_id for c in configs.values()}
        < {c.run_id for c in experiments.load(table).configs()}
    )
    assert all(0 < one.test_error < 100 for one in found.values())


def test_committed_rows_stand_for_runs_that_are_not_here(table: str, tmp_path: Path):
    """A run here comes first; a run that diverged is trained, as no curve tells how it began."""
    (normal, wn), (other, _) = (
        [c.run_id for c in section5.configs_of(table, ("normal", "WN"), seed).values()] for seed in (1, 0)
    )
    folder = tmp_path / "results" / table
    folder.mkdir(parents=True)
    (folder / "runs.csv").write_text(
        "run_id,status,train_error,test_error\n"
        f"{normal},finished,0.25,0.125\n{wn},diverged,,\n{other},finished,,0.5\n"
    )
    (folder / "curves.csv").write_text(f"run_id,epoch,layer,name,value\n{normal},8,,train_error,0.375\n")
    found = section5.trained(table, ("normal", "WN"), 1)
    assert (found["normal"].test_error, found["normal"].train_error(8)) == (12.5, 37.5)
    assert {path.parent.name for path in tmp_path.glob("runs/table/*/record.json")} == {wn}
    train_sweep([section5.configs_of(table, ("normal",), 0)["normal"]])
    section5.trained.cache_clear()
    assert section5.trained(table, ("normal",), 0)["normal"].test_error != 50


@pytest.mark.parametrize("name", ["L1", "L2", "L3", "B5c", "B6c", "B7c"])
def test_the_rows_of_the_claims_are_those_of_the_experiment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The claims' were measured from the records, the experiment's tell an epoch in five digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known, "recorded", lambda configs: pytest.fail("all are committed"))
    for function in (section5.trained, known.committed, rates_convnet.grids):
        function.cache_clear()
    rows = [{**row, "part": part.name} for part in MEASUREMENTS[name]() for row in part.measure()]
    with (ROOT / "results" / "claims" / f"{name}.csv").open(newline="") as file:
        there = {_key(row): float(row["value"]) for row in csv.DictReader(file)}
    assert {_key(row): row["value"] for row in rows} == pytest.approx(there, abs=1e-3)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["part"], row["quantity"], int(row["seed"])


def test_a_rate_that_is_not_chosen_yet_is_asked_for(table: str):
    with pytest.raises(
        UserError, match=r"other: no chosen learning rate; first python -m wn.train .*selection"
    ):
        section5.configs_of(table, ("normal", "other"), 0)


@pytest.mark.parametrize("name", ["L1", "L2", "L3"])
def test_a_part_a_seed(name: str, monkeypatch: pytest.MonkeyPatch):
    """That of a control waits for its learning rate, and holds up no other."""
    seeds = [f"seed_{seed}" for seed in range(criteria.load(name).seeds)]
    rows = experiments.load(section5.TABLE).rows
    for rate in (None, 0.001):
        changed = {"chosen": rate}
        known = [row.model_copy(update=changed if row.name == section5.CODE else {}) for row in rows]
        file = SimpleNamespace(rows=known, seeds=range(len(seeds)))
        with monkeypatch.context() as patch:
            patch.setattr(experiments, "load", lambda name, file=file: file)
            patch.setattr(section5, "configs_of", lambda *which: {})
            parts = [part.name for part in MEASUREMENTS[name]()]
        assert parts[:5] == seeds
        controlled = name != "L1" and rate is not None
        assert parts[5:] == [f"{seed}_code" for seed in seeds] * controlled
