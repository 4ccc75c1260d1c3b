"""Which runs count in a report: those of the plan's run_ids, and of any folder those that compare."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_cases import (
    LRS,
    NAME,
    SEEDS,
    SWEEP,
    config,
    contents,
    declare,
    run_of,
    write_record,
    write_run,
    write_sweep,
)

from wn.presets import PRESETS
from wn.report import collect, figures
from wn.report.plan import Plan

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("plan")


# Identity --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_other_settings_fills_no_cell_and_is_named(tmp_path: Path, plan: Plan, told: Any) -> None:
    own = run_of(plan, "none", 0.1, 0)
    for field, value in (("batch_size", 10), ("precision", "bfloat16")):
        other = own.model_copy(update={"trainer": own.trainer.model_copy(update={field: value})})
        write_record(tmp_path / "runs" / NAME, other, 0.01)
        text = told(NAME)
        assert f"1 record in runs/{NAME} is of no run of {NAME} as it is now" in text
        assert f"(first: {other.run_id})" in text
        assert "0 of 18 runs done" in text
        shutil.rmtree(tmp_path / "runs")
    elsewhere = own.trainer.model_copy(update={"device": "cpu", "compile": True, "progress": False})
    write_record(tmp_path / "runs" / NAME, own.model_copy(update={"trainer": elsewhere}), 0.01)
    assert "none, 1 of 9 runs done" not in told(NAME), "all rows are pending: one line for all"
    assert "1 of 18 runs done" in told(NAME)


@pytest.mark.usefixtures("no_figures")
def test_committed_rows_of_a_changed_preset_go_and_are_named(
    tmp_path: Path, plan: Plan, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "runs", plan)
    told(NAME, "--publish")
    shifted = {**SWEEP, "grid": {**SWEEP["grid"], "optim.lr": [0.1, 1.0, 10.0]}}
    plan = declare(tmp_path, monkeypatch, shifted)
    rows, notes = collect.committed(plan, tmp_path / "results" / NAME)
    assert len(rows.runs) == 12
    assert set(rows.curves["run_id"]) <= set(rows.runs.index)
    assert notes[0].startswith(
        f"6 committed rows in {tmp_path}/results/{NAME}/runs.csv are of no run of {NAME}"
    )
    monkeypatch.setattr("wn.config.compose.CONFIGS", tmp_path / "configs")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "optim" / "sgd.yaml").write_text("name: sgd\nmomentum: 0.5\n")
    from wn.config import compose

    compose._preset.cache_clear()
    try:
        text = told(NAME, "--runs-dir", "nothing")
        assert f"18 committed rows in results/{NAME}/runs.csv are of no run of {NAME} as it is now" in text
        assert "0 of 18 runs done" in text
        assert "18 committed rows" in told(NAME, "--publish", "--runs-dir", "nothing")
    finally:
        compose._preset.cache_clear()


def test_a_row_is_read_as_it_was_written(tmp_path: Path, plan: Plan, told: Any, no_figures: None) -> None:
    write_sweep(tmp_path / "runs", plan, seconds=0.1 + 0.2)
    told(NAME)
    folder = tmp_path / "runs" / NAME / "report"
    rows, _ = collect.committed(plan, folder)
    assert set(rows.runs["seconds"]) == {0.1 + 0.2}, "all digits"
    gone = rows.runs[rows.runs["status"] == "diverged"].iloc[0]
    assert (gone["diverged_epoch"], gone["diverged_step"], str(gone["valid_error"])) == (1, 7, "nan")
    again = tmp_path / "again"
    again.mkdir()
    collect.write(plan, rows, again)
    for name in ("runs.csv", "curves.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert list(rows.curves["layer"].unique()) == ["hidden0", "hidden1", "output"], "in the model's order"
    drawn = figures.trajectory_figure(plan, rows)
    assert "layer hidden1," in drawn.get_supxlabel(), "the middle one"
    assert set(rows.runs.loc[rows.curves["run_id"], "seed"]) == {0}
    assert 0.0033333 in set(rows.curves["value"]), "five digits"


def test_trajectories_of_a_long_table_are_of_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan, told: Any
) -> None:
    """Of more norms than the figure has columns only the last one is trained."""
    others = [norm for norm in PRESETS if norm != "weight_norm"]
    norms = [*others[: figures.COLUMNS], "weight_norm"]
    many = declare(tmp_path, monkeypatch, SWEEP | {"grid": SWEEP["grid"] | {"norm": norms}})
    write_run(tmp_path / "runs", many, norms[-1], LRS[0], SEEDS[0])
    told(NAME)
    rows, _ = collect.committed(many, tmp_path / "runs" / NAME / "report")
    drawn = figures.trajectory_figure(many, rows)
    assert {axes.get_title().replace("\n", "") for axes in drawn.axes} == {norms[-1], ""}
    assert f"; 1 of {len(norms)} rows" in drawn.get_supxlabel()


def test_names_of_norms_are_shown_and_change_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan, told: Any, no_figures: None
) -> None:
    write_sweep(tmp_path / "runs", plan)
    told(NAME, "--publish")
    folder = tmp_path / "results" / NAME
    before, table = contents(folder), pd.read_csv(folder / "table.csv")
    shutil.rmtree(tmp_path / "runs")
    names = {"plain, as it is": "none", "ours": "weight_norm"}
    declare(tmp_path, monkeypatch, SWEEP | {"grid": SWEEP["grid"] | {"norm": names}})
    shown = told(NAME, "--publish")
    assert [line for line in shown.splitlines() if line.startswith("ours")][-1] == "ours: norm=weight_norm"
    after = contents(folder)
    assert all(after[file] == before[file] for file in ("runs.csv", "curves.csv"))
    named = pd.read_csv(folder / "table.csv")
    assert list(named.pop("norm")) == list(names)
    assert list(table.pop("norm")) == list(names.values())
    pd.testing.assert_frame_equal(named, table)


# Any other sweep -------------------------------------------------------------------------------------


def test_any_folder_has_its_report(tmp_path: Path, told: Any, no_figures: None) -> None:
    folder = tmp_path / "elsewhere" / "mine"
    for width, norm, lr, seed in itertools.product((8, 16), ("none", "batch_norm"), LRS, (0, 1)):
        if (width, norm, lr) != (16, "none", 1.0) and (width, norm, seed) != (8, "batch_norm", 1):
            run = config(norm=norm, optim__lr=lr, seed=seed, model__widths=[width], trainer__epochs=2)
            write_record(folder, run, lr / 10 + seed / 100)
    text = told(str(folder))
    assert re.search(r"^\[8\] +none  0\.01 \(edge\) +0\.60 ± ", text, re.M)
    assert re.search(r"^\[16\] +none \* ", text, re.M)
    assert "*: model.widths=[16], none: learning rates 0.01, 0.1 where most rows have 0.01, 0.1, 1" in text
    assert "*: model.widths=[8], batch_norm: seeds 0 where most rows have 0, 1" in text
    assert (folder / "report" / "page.md").exists()
    assert not (tmp_path / "results").exists()
    assert "mine" in told(str(folder), "--publish", status=2)


def test_a_seed_without_some_learning_rates_does_not_count(
    tmp_path: Path, told: Any, no_figures: None
) -> None:
    for lr, seed in ((0.1, 0), (0.2, 0), (0.1, 1)):
        write_record(tmp_path / "runs" / "adhoc", config(optim__lr=lr, seed=seed), 0.1)
    text = told("adhoc")
    assert "seeds 1 lack some of its learning rates and do not count" in text
    assert re.search(r"weight_norm \* +0\.1 \(edge\) +10\.00 ± n/a +1 ", text)


def test_what_did_not_finish_is_named(tmp_path: Path, told: Any, no_figures: None) -> None:
    folder = tmp_path / "runs" / "adhoc"
    write_record(folder, config(seed=0), 0.1)
    write_record(folder, config(seed=1), 0.1, status="failed", error="CUDA error")
    write_record(folder, config(seed=2), 0.1, status="running")
    write_record(folder, config(seed=3), 0.1, schema=1, run_id="0" * 12)
    (folder / "broken").mkdir()
    (folder / "broken" / "record.json").write_text("{")
    text = told("adhoc")
    assert f"1 run failed (first: {config(seed=1).run_id}: CUDA error)" in text
    assert (
        f"1 run in training or cut short: the same command goes on (first: {config(seed=2).run_id})" in text
    )
    assert "1 record in runs/adhoc is of another version of the settings" in text
    assert "1 record in runs/adhoc cannot be read; training sets them aside (first: broken)" in text


@pytest.mark.parametrize(
    ("runs", "files"),
    [
        ([(0.1, 0, 0.0), (0.1, 1, None)], {"curves.svg", "trajectories.svg"}),
        ([(0.1, 0, None), (1.0, 0, None)], {"error.svg", "loss.svg", "trajectories.svg"}),
    ],
)
def test_the_smallest_sweeps_can_be_drawn(
    runs: list[Any], files: set[str], tmp_path: Path, told: Any
) -> None:
    for lr, seed, end in runs:
        run = config(optim__lr=lr, seed=seed, trainer__epochs=4)
        record = write_record(tmp_path / "runs" / "adhoc", run, end)
        probe = {"epoch": 0, "step": 0, "layer": "a", "w_norm_mean": 1.0, "effective_lr": lr}
        (record / "probes.jsonl").write_text(json.dumps(probe) + "\n")
    told("adhoc")
    assert {path.name for path in (tmp_path / "runs" / "adhoc" / "report").glob("*.svg")} == files


def test_of_classifiers_and_vaes_in_one_folder_the_more_are_shown(
    tmp_path: Path, told: Any, no_figures: None
) -> None:
    for lr in (0.1, 0.2):
        write_record(tmp_path / "runs" / "adhoc", config(optim__lr=lr), lr)
        write_record(tmp_path / "runs" / "adhoc", config(model="mlp_vae", optim="adam", optim__lr=lr), 30.0)
        write_record(tmp_path / "runs" / "adhoc", config(data="mnist", optim__lr=lr), lr)
    text = told("adhoc")
    assert "test error %" in text
    assert "test ELBO (nats)" not in text
    assert "2 runs of VAEs are not shown" in text
    assert re.search(r"^mnist +weight_norm", text, re.M)


def test_of_several_likelihoods_in_one_folder_the_more_are_shown(
    tmp_path: Path, told: Any, no_figures: None
) -> None:
    """The logistic one's bounds have another unit: D ln 256 more than these."""
    for likelihood, losses in (("logistic", [300.0]), ("bernoulli", [30.0, 40.0])):
        for seed, loss in enumerate(losses):
            settings = {"model": "mlp_vae", "optim": "adam", "model__likelihood": likelihood, "seed": seed}
            write_record(tmp_path / "runs" / "adhoc", config(**settings), loss)
    text = told("adhoc")
    assert "1 runs of VAEs of 64 bytes an image are not shown" in text
    assert re.search(r"-35\.00 ±", text)
