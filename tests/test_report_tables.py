"""Tables of rows of errors, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_cases import own
from report_cases import (
    FIXED,
    LRS,
    NAME,
    ROWS,
    SWEEP,
    TABLE,
    by_norm,
    cells,
    declare,
    lines,
    p_of,
    rows_of,
    run_of,
    table,
    write_record,
    write_seeds,
)

from wn import plugins
from wn.config import UserError
from wn.report import collect, columns, curves, figures, page
from wn.report.plan import Plan


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return declare(tmp_path, monkeypatch, TABLE)


def test_a_line_by_hand(plan: Plan, tmp_path: Path) -> None:
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.07, 0.08, 0.075])
    write_seeds(tmp_path, plan, "batch_norm", 0.1, [0.08, 0.08, 0.09])
    found = lines(plan, tmp_path)
    line = found["ours", 0.1]
    assert (line["runs"], line["planned"], line["n"], line["diverged"]) == (3, 3, 3, 0)
    assert line["test_error_percent"] == pytest.approx(7.5)
    assert line["test_error_percent_half_width"] == pytest.approx(4.303 * 0.5 / math.sqrt(3), rel=1e-3)
    assert line["p_vs_bn"] == pytest.approx(p_of([-0.01, 0.0, -0.015]))
    assert math.isnan(line["p_vs_normal"]), "no run of it is done"
    assert math.isnan(found["BN", 0.1]["p_vs_bn"]), "not against itself"
    shown = cells(plan, tmp_path)["ours", "0.1"]
    assert (shown["test error %"], shown["n"], shown["expected %"]) == ("7.50 ± 1.24", "3", "7.1 to 7.7: in")
    assert (shown["paper %"], shown["training error %"], shown["status"]) == ("7.30", "7.50", "done")
    assert shown["RMSNorm authors' rerun %"] == "–"


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [([0.08] * 3, "7.1 to 7.7: out"), ([0.071] * 3, "7.1 to 7.7: in"), ([0.08] * 2, "7.1 to 7.7")],
)
def test_a_verdict_takes_three_seeds(
    plan: Plan, tmp_path: Path, errors: list[float | None], verdict: str
) -> None:
    write_seeds(tmp_path, plan, "weight_norm", 0.1, errors)
    assert cells(plan, tmp_path)["ours", "0.1"]["expected %"] == verdict


def test_a_diverged_run_is_told_and_in_no_mean(plan: Plan, tmp_path: Path) -> None:
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.07, None, 0.08])
    write_seeds(tmp_path, plan, "batch_norm", 0.1, [None, None, None])
    write_seeds(tmp_path, plan, "none_init", 0.1, [None])
    shown = cells(plan, tmp_path)
    ours, gone, first = shown["ours", "0.1"], shown["BN", "0.1"], shown["normal", "0.1"]
    assert (ours["status"], ours["n"], ours["test error %"][:4]) == ("done, 1 diverged", "2", "7.50")
    assert (gone["status"], gone["n"], gone["test error %"]) == ("done, 3 diverged", "0", "–")
    assert (first["status"], first["test error %"]) == ("1 of 3 done, 1 diverged", "pending")


def test_what_is_not_done_is_pending_and_says_how(plan: Plan, tmp_path: Path) -> None:
    command = f"python -m wn.train +experiment={NAME}"
    shown = cells(plan, tmp_path)
    assert {row["status"] for row in shown.values()} == {"pending"}
    assert (shown["BN", "0.1"]["paper %"], shown["BN", "0.1"]["test error %"]) == ("8.05", "pending")
    assert page.steps_of(plan, rows_of(plan, tmp_path), tmp_path) == [("0 of 12 runs done", command)]
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.07, 0.08, 0.075])
    write_seeds(tmp_path, plan, "none_init", 0.1, [0.07])
    assert page.steps_of(plan, rows_of(plan, tmp_path), tmp_path) == [
        ("BN, 0 of 3 runs done", f"{command} norm=batch_norm"),
        ("normal, 1 of 6 runs done", f"{command} norm=none_init"),
    ]


def test_rows_of_one_norm_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {
        "name": "as in the code",
        "norm": "none_init",
        "set": {"model.weight_init": "glorot"},
        "lrs": [0.1],
    }
    plan = declare(tmp_path, monkeypatch, TABLE | {"rows": [*ROWS, other]})
    for group, lr, errors in ((plan.groups[2], 0.01, [0.08, 0.09]), (plan.groups[3], 0.1, [0.05, 0.05])):
        for seed, error in enumerate(errors):
            write_record(tmp_path / NAME, group.configs[group.ids[lr, seed]], error)
    shown = cells(plan, tmp_path)
    assert shown["normal", "0.01"]["test error %"][:4] == "8.50"
    assert shown["as in the code", "0.1"]["test error %"][:4] == "5.00"
    assert shown["as in the code", "0.1"]["p vs normal"] != "–"
    assert len({tuple(figures.look(plan, group).values()) for group in plan.groups}) == len(plan.groups)
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.1] * 3)
    done = "normal, 2 of 6 runs done; as in the code, 2 of 3 runs done"
    command = f"python -m wn.train +experiment={NAME} norm=none_init"
    assert page.steps_of(plan, rows_of(plan, tmp_path), tmp_path)[-1] == (done, command), "trains both"


def test_numbers_are_flush_right_and_words_flush_left() -> None:
    rows = [["row", *"abcde"], ["1", "+1.0", "**-1.00 ± 0.50**", "≥ 2", "better", "**bold**"]]
    rows += [["2", "+5%", "**+1.00 ± 0.50**", "–", "–", "2"]]
    assert columns.in_markdown(rows).splitlines()[1] == "| --- | ---: | ---: | ---: | --- | --- |"


def test_curves_are_of_the_finished_runs(plan: Plan, tmp_path: Path) -> None:
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.07, None, 0.08])
    rows = rows_of(plan, tmp_path)
    (curve,) = curves.curves_of(plan, rows, "train_error")
    line, epochs, values = curve
    assert line.label == "ours, lr 0.1"
    assert list(epochs) == [1, 2, 3, 4]
    assert values == pytest.approx(np.array([[56, 64], [28, 32], [14, 16], [7, 8]]))
    points = curves.points_by_epoch(plan, rows, ["train_error"])
    assert list(points["train_error"]) == pytest.approx([60, 30, 15, 7.5])
    assert list(points["epoch"]) == [1, 2, 3, 4]
    assert (set(points["line"]), set(points["runs"])) == ({"ours, lr 0.1"}, {2})


# Chosen learning rates -------------------------------------------------------------------------------


def test_a_chosen_rate_is_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(tmp_path, monkeypatch, SWEEP, "choice")
    rows = [ROWS[0] | {"chosen": 0.01}, ROWS[1] | {"chosen": 0.1}, ROWS[2]]
    plan = declare(tmp_path, monkeypatch, TABLE | {"rows": rows, "chosen_by": "choice"})
    write_seeds(tmp_path, plan, "weight_norm", 0.01, [0.07, 0.08])
    shown = cells(plan, tmp_path)
    assert list(shown) == [
        *(("ours", "0.1"), ("ours", "0.01 (chosen)"), ("BN", "0.1 (chosen)")),
        *(("normal", "0.01"), ("normal", "0.1"), ("normal", "to be chosen")),
    ]
    assert shown["ours", "0.01 (chosen)"]["status"] == "2 of 3 done"
    assert page.steps_of(plan, rows_of(plan, tmp_path), tmp_path)[-1] == (
        "learning rates to be chosen",
        "python -m wn.train +experiment=choice && python -m wn.report choice",
    )


def test_a_file_that_says_another_rate_than_was_chosen_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = declare(tmp_path, monkeypatch, SWEEP, "choice")
    for lr, end in zip(LRS, (0.05, 0.03, 0.02), strict=True):
        write_seeds(tmp_path / "runs", choice, "weight_norm", lr, [end] * 3)
        write_seeds(tmp_path / "runs", choice, "none", lr, [end])
    (tmp_path / "results" / "choice").mkdir(parents=True)
    collect.write(choice, rows_of(choice, tmp_path / "runs"), tmp_path / "results" / "choice")
    rows = [ROWS[0] | {"chosen": 0.01}, ROWS[2] | {"norm": "none", "chosen": 0.1}]
    plan = declare(tmp_path, monkeypatch, TABLE | {"rows": rows, "chosen_by": "choice"})
    steps = page.steps_of(plan, rows_of(plan, tmp_path), tmp_path / "results")
    assert steps[1:] == [(f"ours: choice chooses lr 1, experiments/{NAME}.yaml says 0.01", "chosen: 1")], (
        "none is not complete"
    )


def test_a_row_with_settings_of_its_own_is_held_against_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``set`` in a row and overrides behind a preset are two ways to say the same."""
    set_behind = {"weight_norm norm.output_layers=false": 1.0, "weight_norm norm.eps=1e-5": 0.1}
    ends = {"weight_norm": 0.01} | set_behind
    grid = SWEEP["grid"] | {"norm": list(ends)}
    choice = declare(tmp_path, monkeypatch, SWEEP | {"grid": grid}, "choice")
    for group in choice.groups:
        for (lr, _), run_id in group.ids.items():
            end = 0.02 if lr == ends[group.norm] else 0.05
            write_record(tmp_path / "runs" / "choice", group.configs[run_id], end)
    (tmp_path / "results" / "choice").mkdir(parents=True)
    collect.write(choice, rows_of(choice, tmp_path / "runs"), tmp_path / "results" / "choice")
    rows: list[dict[str, Any]] = [
        {"name": "all", "norm": "weight_norm"},
        {"name": "logits plain", "norm": "weight_norm", "set": {"norm.output_layers": False}},
        {"name": "behind", "norm": "weight_norm norm.eps=1e-5"},
        {"name": "unknown", "norm": "weight_norm", "set": {"norm.eps": 1e-3}},
    ]
    rows = [row | {"lrs": [0.1], "chosen": 0.01} for row in rows]
    plan = declare(tmp_path, monkeypatch, TABLE | {"rows": rows, "chosen_by": "choice"})
    steps = page.steps_of(plan, rows_of(plan, tmp_path), tmp_path / "results")
    assert steps[1:] == [
        (f"logits plain: choice chooses lr 1, experiments/{NAME}.yaml says 0.01", "chosen: 1"),
        (f"behind: choice chooses lr 0.1, experiments/{NAME}.yaml says 0.01", "chosen: 0.1"),
    ]


def test_p_is_against_the_row_at_its_learning_rate_of_the_same_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, monkeypatch, SWEEP, "choice")
    rows = [row | {"chosen": 0.01} for row in ROWS]
    plan = declare(tmp_path, monkeypatch, TABLE | {"rows": rows, "chosen_by": "choice"})
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.01, 0.02, 0.06])
    write_seeds(tmp_path, plan, "weight_norm", 0.01, [0.07, 0.08, 0.09])
    write_seeds(tmp_path, plan, "batch_norm", 0.1, [0.01, 0.02, 0.05])
    write_seeds(tmp_path, plan, "batch_norm", 0.01, [0.01, 0.02, 0.04])
    found = lines(plan, tmp_path)
    larger, smaller = p_of([0.0, 0.0, 0.01]), p_of([0.06, 0.06, 0.05])  # Holm: the smaller counts twice
    assert larger > 2 * smaller
    assert found["ours", 0.1]["p_vs_bn"] == pytest.approx(larger)
    assert found["ours", 0.01]["p_vs_bn"] == pytest.approx(2 * smaller)


def test_an_experiment_may_choose_on_its_own_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = declare(tmp_path, monkeypatch, TABLE | {"chosen_by": NAME})
    write_seeds(tmp_path, plan, "none_init", 0.01, [0.07, 0.09, 0.08])
    assert ("normal", "to be chosen") in cells(plan, tmp_path)
    write_seeds(tmp_path, plan, "none_init", 0.1, [0.06, 0.08])
    shown = cells(plan, tmp_path)
    assert len(shown) == 3, "the test set is read at the chosen learning rate only"
    row = shown["normal", "0.1 (chosen)"]
    assert (row["test error %"][:4], row["n"], row["status"]) == ("7.00", "2", "5 of 6 done")


def test_what_a_run_took_and_on_what(plan: Plan, tmp_path: Path) -> None:
    write_seeds(tmp_path, plan, "weight_norm", 0.1, [0.07, 0.08, None], seconds=7000.0)
    for seed, (seconds, device) in enumerate([(60.0, "CPU"), (20.0, "GPU")]):
        run = run_of(plan, "batch_norm", 0.1, seed)
        write_record(tmp_path / NAME, run, 0.08, seconds=seconds, provenance={"device": device})
    shown = {key: row["a run takes"] for key, row in cells(plan, tmp_path).items()}
    assert shown["ours", "0.1"] == "1.9 hours, CPU"
    assert shown["BN", "0.1"] == "40 seconds, CPU; GPU"
    assert shown["normal", "0.01"] == "pending"
    assert "a run takes" not in table(plan, tmp_path).cells(front=True)[0], "the front page stays narrow"


def test_a_grid_over_anything_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"norm": ["none"], "trainer.batch_size": [50, 100], "optim.lr": [0.1, 0.2], "seed": [0]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "fixed": FIXED, "grid": grid})
    assert plan.facets == ("trainer.batch_size",)
    names = [group.name for group in plan.groups]
    assert names == ["trainer.batch_size=50, none", "trainer.batch_size=100, none"]


def test_settings_that_agree_in_six_digits_are_two_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"norm": ["none"], "optim.weight_decay": [1e-4, 1.0000001e-4], "optim.lr": [0.1], "seed": [0]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "fixed": FIXED, "grid": grid})
    assert [group.facet for group in plan.groups] == [("0.0001",), ("0.00010000001",)]


def test_a_norm_of_ones_own_is_held_against_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load([own(tmp_path)])
    fixed, grid = {**FIXED, "plugins": ["own.py"]}, {**SWEEP["grid"], "norm": ["none", "mine"]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "fixed": fixed, "grid": grid})
    assert [group.name for group in plan.groups] == ["none", "mine"]
    for norm, ends in (("none", [0.01, 0.02, 0.06]), ("mine", [0.07, 0.08, 0.10])):
        for lr in LRS:
            write_seeds(tmp_path, plan, norm, lr, ends if lr == 0.1 else [0.5, 0.5, 0.5])
    assert by_norm(plan, tmp_path)["mine"]["p_vs_none"] == pytest.approx(p_of([0.06, 0.06, 0.04]))


def test_kinds_of_numbers_share_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of bytes are shown as those of a density, which is D ln 256 above them."""
    grid = {"model.likelihood": ["bernoulli", "logistic"], "norm": ["none"], "seed": [0]}
    tree = {**SWEEP, "fixed": {"model": "mlp_vae", "optim": "adam"}, "grid": grid}
    with pytest.raises(UserError, match="VAEs and VAEs of 64 bytes an image share no table"):
        declare(tmp_path, monkeypatch, tree)
