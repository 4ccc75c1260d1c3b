"""The table of test errors and its figures, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_cases import NAME, contents
from table_cases import CHOICE, ROWS, commit_choice, declare_table, lines_of, rows_of, write_runs

from wn import experiments, report
from wn.config import UserError
from wn.experiments import Experiment
from wn.report import classification, learning_curves, lines, page
from wn.report.status import status

REPOSITORY = experiments.FOLDER


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    return declare_table(tmp_path, monkeypatch)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr(learning_curves, "draw", lambda *_: [])


def cells(experiment: Experiment, runs_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The first table as it is shown, by row and learning rate."""
    table = classification.table(rows_of(experiment, runs_dir), experiment)
    heading, *rows = classification.display(table, experiment)[0]
    return {(row[0], row[1]): dict(zip(heading, row, strict=True)) for row in rows}


def publish(folder: Path, points: list[list[float]]) -> None:
    """A curve of the row ``ours`` that somebody published."""
    (folder / "experiments" / "paper").mkdir(exist_ok=True)
    tree = {"curves": {"ours": points}}
    (folder / "experiments" / "paper" / "curves.yaml").write_text(yaml.safe_dump(tree))


def test_a_line_by_hand(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path, "weight_norm", 0.1, [0.07, 0.08, 0.075])
    write_runs(tmp_path, "batch_norm", 0.1, [0.08, 0.08, 0.09])
    lines = lines_of(experiment, tmp_path)
    line = lines["ours", 0.1]
    assert (line["runs"], line["planned"], line["n"], line["diverged"]) == (3, 3, 3, 0)
    assert line["test_error"] == pytest.approx(0.075)
    assert line["test_error_half_width"] == pytest.approx(4.303 * 0.005 / math.sqrt(3), rel=1e-3)
    difference = np.array([-0.01, 0.0, -0.015])
    t = abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(3))
    assert line["p_vs_bn"] == pytest.approx(1 - t / math.sqrt(t * t + 2))  # two degrees of freedom
    assert math.isnan(line["p_vs_normal"]), "no run of it is done"
    assert math.isnan(lines["BN", 0.1]["p_vs_bn"]), "not against itself"
    shown = cells(experiment, tmp_path)["ours", "0.1"]
    assert (shown["test error %"], shown["n"], shown["expected %"]) == ("7.50 ± 1.24", "3", "7.1 to 7.7: in")
    assert (shown["paper %"], shown["training error %"], shown["status"]) == ("7.30", "7.50", "done")
    assert shown["RMSNorm authors' rerun %"] == "–"


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [([0.08] * 3, "7.1 to 7.7: out"), ([0.071] * 3, "7.1 to 7.7: in"), ([0.08] * 2, "7.1 to 7.7")],
)
def test_a_verdict_takes_three_seeds(
    experiment: Experiment, tmp_path: Path, errors: list[float | None], verdict: str
) -> None:
    write_runs(tmp_path, "weight_norm", 0.1, errors)
    assert cells(experiment, tmp_path)["ours", "0.1"]["expected %"] == verdict


def test_nothing_done_is_pending_beside_the_published_numbers(experiment: Experiment, tmp_path: Path) -> None:
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    assert built.text.endswith(f"0 of 12 runs done: python -m wn.train +experiment={NAME}")
    assert set(contents(tmp_path / "results")) == {"README.md"}
    assert "| BN | 0.1 | 8.05 | 8.25 | pending | 0 | – | pending" in contents(tmp_path / "results")[
        "README.md"
    ].decode("utf-8")
    assert {shown["status"] for shown in cells(experiment, tmp_path).values()} == {"pending"}


def test_a_diverged_run_is_told_and_in_no_mean(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path, "weight_norm", 0.1, [0.07, None, 0.08])
    write_runs(tmp_path, "batch_norm", 0.1, [None, None, None])
    write_runs(tmp_path, "none_init", 0.1, [None])
    shown = cells(experiment, tmp_path)
    ours, gone, first = shown["ours", "0.1"], shown["BN", "0.1"], shown["normal", "0.1"]
    assert (ours["status"], ours["n"], ours["test error %"][:4]) == ("done, 1 diverged", "2", "7.50")
    assert (gone["status"], gone["n"], gone["test error %"]) == ("done, 3 diverged", "0", "–")
    assert (first["status"], first["test error %"]) == ("1 of 3 done, 1 diverged", "pending")


def test_commands_are_those_of_the_rows_that_are_left(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path, "weight_norm", 0.1, [0.07, 0.08, 0.075])
    write_runs(tmp_path, "none_init", 0.1, [0.07])
    table = classification.table(rows_of(experiment, tmp_path), experiment)
    command = f"python -m wn.train +experiment={NAME} norm"
    assert classification.unfinished(table, experiment) == [
        ("BN, 0 of 3 runs done", f"{command}=batch_norm"),
        ("normal, 1 of 6 runs done", f"{command}=none_init"),
    ]


def test_curves_are_means_of_the_finished_runs(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path, "weight_norm", 0.1, [0.07, None, 0.08])
    curves = classification.curves(rows_of(experiment, tmp_path), experiment)
    assert list(curves["epoch"]) == [1, 2, 3, 4]
    assert set(curves["line"]) == {"ours, lr 0.1"}
    assert list(curves["runs"]) == [2] * 4
    assert list(curves["train_error"]) == pytest.approx([0.6, 0.3, 0.15, 0.075])
    assert list(curves["train_error_max"]) == pytest.approx([0.64, 0.32, 0.16, 0.08])
    assert curves["valid_error"].isna().all()


def test_deviation_from_the_published_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, classification):
        monkeypatch.setattr(module, "EPOCHS", (2, 3))
    experiment = declare_table(tmp_path, monkeypatch, curves="paper/curves.yaml")
    publish(tmp_path, [[1, 60.0], [2.5, 30.0], [4, 15.0]])
    write_runs(tmp_path, "weight_norm", 0.1, [0.07, 0.08])
    line = lines_of(experiment, tmp_path)["ours", 0.1]
    assert line["deviation_2"] == pytest.approx(30 / 40 - 1)  # 40 is two thirds of the way from 60 to 30
    table = classification.table(rows_of(experiment, tmp_path), experiment)
    first, (heading, *others) = classification.display(table, experiment)
    assert len(first) == 1 + 4
    assert heading[1:] == ["lr", "epoch 2", "epoch 3"]
    assert others == [["ours", "0.1", "-25%", "-40%"]], "the other rows have no published curve"


# Chosen learning rates -------------------------------------------------------------------------------


def test_chosen_learning_rates_come_from_the_committed_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_choice(tmp_path, "weight_norm,4,4,0.01", "batch_norm,4,4,0.1", "none_init,3,4,1.0")
    experiment = declare_table(tmp_path, monkeypatch, chosen_by=CHOICE)
    assert experiment.chosen == {"weight_norm": 0.01, "batch_norm": 0.1}, "a row without all its runs waits"
    assert [(cell["norm"], cell["optim.lr"]) for cell in experiment.cells()][:5] == [
        *(("weight_norm", 0.1), ("weight_norm", 0.01), ("batch_norm", 0.1)),
        *(("none_init", 0.01), ("none_init", 0.1)),
    ]
    write_runs(tmp_path, "weight_norm", 0.01, [0.07, 0.08])
    shown = cells(experiment, tmp_path)
    assert list(shown) == [
        *(("ours", "0.1"), ("ours", "0.01 (chosen)"), ("BN", "0.1 (chosen)")),
        *(("normal", "0.01"), ("normal", "0.1"), ("normal", "to be chosen")),
    ]
    assert shown["ours", "0.01 (chosen)"]["status"] == "2 of 3 done"
    table = classification.table(rows_of(experiment, tmp_path), experiment)
    assert classification.unfinished(table, experiment)[-1] == (
        "learning rates to be chosen",
        f"python -m wn.train +experiment={CHOICE} && python -m wn.report {CHOICE}",
    )


def test_p_is_against_the_row_at_its_learning_rate_of_the_same_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_choice(tmp_path, "weight_norm,4,4,0.01", "batch_norm,4,4,0.01")
    experiment = declare_table(tmp_path, monkeypatch, chosen_by=CHOICE)
    write_runs(tmp_path, "weight_norm", 0.1, [0.01, 0.02, 0.06])
    write_runs(tmp_path, "weight_norm", 0.01, [0.07, 0.08, 0.09])
    write_runs(tmp_path, "batch_norm", 0.1, [0.01, 0.02, 0.05])
    write_runs(tmp_path, "batch_norm", 0.01, [0.01, 0.02, 0.04])
    lines = lines_of(experiment, tmp_path)
    for lr, d in ((0.1, [0.0, 0.0, 0.01]), (0.01, [0.06, 0.06, 0.05])):
        t = np.mean(d) / (np.std(d, ddof=1) / math.sqrt(3))
        assert lines["ours", lr]["p_vs_bn"] == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_an_experiment_may_choose_on_its_own_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = declare_table(tmp_path, monkeypatch, chosen_by=NAME)
    write_runs(tmp_path, "none_init", 0.01, [0.07, 0.09, 0.08])
    assert list(cells(experiment, tmp_path)) == [(row["name"], "to be chosen") for row in ROWS]
    write_runs(tmp_path, "none_init", 0.1, [0.06, 0.08])
    shown = cells(experiment, tmp_path)["normal", "0.1 (chosen)"]
    assert (shown["test error %"][:4], shown["n"], shown["status"]) == ("7.00", "2", "5 of 6 done")
    assert len(cells(experiment, tmp_path)) == 3, "the test set is read at the chosen learning rate only"
    assert experiment.size == 12


# The experiment itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "the runs are a grid, or rows and seeds"),
        ({"grid": {"seed": [0]}}, "the runs are a grid, or rows and seeds"),
        ({"rows": [ROWS[0], ROWS[0]]}, "two rows have the same norm"),
        ({"rows": [ROWS[0] | {"lrs": []}]}, "at least 1 item"),
        ({"rows": [ROWS[0] | {"colour": "red"}]}, "Extra inputs are not permitted"),
        ({"chosen_by": "robst"}, "chosen_by: no experiment robst; did you mean 'robust'"),
    ],
)
def test_mistakes_in_the_file_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"experiments/{NAME}\.yaml: .*{message}") as refusal:
        declare_table(tmp_path, monkeypatch, **changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [None, "curves: 3", "ours: []", "curves: {ours: [1]}", "curves: ["])
def test_a_bad_file_of_published_curves_is_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = declare_table(tmp_path, monkeypatch, curves="curves.txt")
    if content is not None:
        (tmp_path / "experiments" / "curves.txt").write_text(content)
    with pytest.raises(UserError, match=r"^experiments/curves\.txt: ") as refusal:
        classification.check(experiment)
    assert "\n" not in str(refusal.value)


def test_a_grid_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_table(tmp_path, monkeypatch, rows=[], seeds=[], grid={"seed": [0]})
    with pytest.raises(UserError, match="report classification needs rows"):
        report.build(NAME, tmp_path / "runs", tmp_path / "results")


def test_a_record_made_with_another_setting_of_a_preset_fills_no_cell(experiment: Experiment) -> None:
    config = {"optim": {"name": "adam", "lr": 0.1}, "trainer": {"epochs": 4}, "seed": 0}
    record = {"norm": "weight_norm", "config": config}

    def filled(norm: Any = None, **data: Any) -> bool:
        whole = config | {"data": {"name": "digits"} | data} | ({"norm": norm} if norm else {})
        return experiment.cell_of(record | {"config": whole}) is not None

    assert filled(valid_fraction=0.2)
    assert filled(download=False), "where the files are decides no number"
    assert not filled(valid_fraction=0.3)
    assert not filled(name="mnist")
    assert filled({"direction": "row", "gain": "free", "statistics": "none", "init": "default", "eps": 1e-6})
    assert not filled(
        {"direction": "row", "gain": "free", "statistics": "none", "init": "default", "eps": 1e-3}
    )


def test_what_the_experiment_sets_beside_a_preset_counts_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = {"data": "digits", "data.valid_fraction": 0, "trainer.epochs": 4}
    experiment = declare_table(tmp_path, monkeypatch, fixed=fixed)
    for fraction, fills in ((0.0, True), (0.2, False)):
        config = {"data": {"name": "digits", "valid_fraction": fraction}, "optim": {"lr": 0.1}, "seed": 1}
        record = {"norm": "weight_norm", "config": config | {"trainer": {"epochs": 4}}}
        assert (experiment.cell_of(record) is not None) is fills


# The whole -------------------------------------------------------------------------------------------


def test_build_and_build_again_from_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_table(tmp_path, monkeypatch, curves="paper/curves.yaml")
    publish(tmp_path, [[1, 60.0], [4, 15.0]])
    write_runs(tmp_path / "runs", "weight_norm", 0.1, [0.07, 0.0, 0.08])
    write_runs(tmp_path / "runs", "batch_norm", 0.1, [0.07, None])
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    before = contents(tmp_path / "results")
    files = {"runs.csv", "curves.csv", "table.csv", "table.md"}
    files |= {f"{name}.{kind}" for name in classification.PICTURES for kind in ("svg", "png")}
    assert set(before) == {"README.md"} | {f"{NAME}/{name}" for name in files}
    assert report.build(NAME, tmp_path / "nothing", tmp_path / "results") == built
    assert contents(tmp_path / "results") == before
    assert len(before[f"{NAME}/curves.csv"].splitlines()) == 1 + 4 * 4 + 1  # heading, four runs, one epoch
    assert built.chart == ("epoch", "train_error", "line")
    assert {point["line"] for point in built.curves} == {"ours, lr 0.1", "BN, lr 0.1"}


@pytest.mark.usefixtures("no_figures")
def test_pages_show_it_as_far_as_it_is(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", "weight_norm", 0.1, [0.07])
    begin, end = f"<!-- begin {NAME}: written by python -m wn.report -->\n", f"<!-- end {NAME} -->\n"
    (tmp_path / "README.md").write_text(begin + "old\n" + end)
    (tmp_path / "results" / "bench").mkdir(parents=True)
    (tmp_path / "results" / "bench" / "step.md").write_text("# A step\n| ms |\n")
    report.build(NAME, tmp_path / "runs", tmp_path / "results")
    table = (tmp_path / "results" / NAME / "table.md").read_text()
    assert "| ours | 0.1 | 7.30 | – | 7.00 ± n/a | 1 | 7.1 to 7.7 |" in table
    assert (tmp_path / "README.md").read_text() == begin + table + end
    results = (tmp_path / "results" / "README.md").read_text()
    assert table.rstrip() in results
    assert "## Speed\n\n- [A step](bench/step.md)\n" in results
    assert page.KINDS["classification"].GUIDE in results
    assert page.KINDS["lr_robustness"].GUIDE not in results


def test_status_of_a_table(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", "weight_norm", 0.1, [0.07, None])
    line = status(tmp_path / "runs", tmp_path / "results").splitlines()[1]
    assert line.split() == [NAME, "12", "2", "1", "0", "0", "10", "25", "s"]


# The committed experiments ---------------------------------------------------------------------------


def test_the_cifar10_table_is_trained_in_the_order_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "FOLDER", REPOSITORY)
    table = experiments.load("cifar10_table")
    names = {row.norm: row.name for row in table.rows}
    order = ["WN + MOBN", "BN", "WN", "normal", "MOBN", "WN without init"]
    rounds = [(cell["seed"], names[str(cell["norm"])]) for cell in table.cells()]
    assert list(dict.fromkeys(rounds)) == [(seed, name) for seed in range(5) for name in order]
    assert set(experiments.published(table)) == set(order[:5])
    norms = {row.norm for row in table.rows}
    assert set(experiments.load("cifar10_lr").grid["norm"]) == norms
    assert {row.norm for row in experiments.load("cifar10_small").rows} == norms


def test_published_curves_are_those_of_figure_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the values read off at round epochs."""
    monkeypatch.setattr(experiments, "FOLDER", REPOSITORY)
    curves = experiments.published(experiments.load("cifar10_table"))
    read_off = {
        "normal": [9.9, 4.5, 3.0, 1.0],
        "WN": [9.6, 3.3, 1.5, 0.41],
        "BN": [8.0, 3.0, 1.4, 0.46],
        "WN + MOBN": [10.0, 3.6, 1.7, 0.55],
        "MOBN": [10.2, 5.4, 3.8, 1.2],
    }
    for name, errors in read_off.items():
        assert np.interp([20, 50, 100, 150], *np.array(curves[name]).T[:2]) == pytest.approx(errors, rel=0.06)
