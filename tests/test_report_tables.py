"""Tables of rows, of errors and of ELBOs, and of sweeps of VAEs, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import (
    ELBOS,
    FIXED,
    LRS,
    NAME,
    ROWS,
    SWEEP,
    TABLE,
    VAE,
    by_norm,
    cells,
    declare,
    publish_curve,
    rows_of,
    run_of,
    table,
    write_record,
    write_seeds,
)

from wn import experiments
from wn.report import collect, curves, page
from wn.report.columns import Row
from wn.report.plan import Plan

REPOSITORY = experiments.FOLDER
NORMAL, OURS = [86.0, 86.4, 86.5], [85.9, 86.1, 86.1]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return declare(tmp_path, monkeypatch, TABLE)


@pytest.fixture
def elbos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    paper = {"normal": [[10, -91.0, 0.1], [20, -86.25, 0.2]], "WN": [[10, -90.0, 0.1], [20, -86.0, 0.05]]}
    publish_curve(tmp_path, "paper/bounds.yaml", paper)
    return declare(tmp_path, monkeypatch, ELBOS)


def lines(plan: Plan, runs_dir: Path) -> dict[tuple[str, Any], Row]:
    return {(row["row"], row["lr"]): row for row in table(plan, runs_dir).rows}


def p_of(d: Any) -> float:
    """Of the paired t test with two degrees of freedom."""
    t = abs(np.mean(d)) / (np.std(d, ddof=1) / math.sqrt(3))
    return float(1 - t / math.sqrt(t * t + 2))


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


# ELBOs -----------------------------------------------------------------------------------------------


def write_elbos(runs_dir: Path, plan: Plan) -> None:
    write_seeds(runs_dir, plan, "none_init", 0.002, list(NORMAL))
    write_seeds(runs_dir, plan, "weight_norm_init", 0.002, list(OURS))


def test_an_elbo_by_hand(elbos: Plan, tmp_path: Path) -> None:
    write_elbos(tmp_path, elbos)
    found = lines(elbos, tmp_path)
    ours = found["WN", 0.002]
    assert (ours["runs"], ours["planned"], ours["n"], ours["diverged"]) == (3, 3, 3, 0)
    assert ours["test_elbo"] == pytest.approx(-258.1 / 3)
    assert ours["test_elbo_sd"] == pytest.approx(0.2 / math.sqrt(3))
    assert ours["test_elbo_half_width"] == pytest.approx(4.303 * 0.2 / 3, rel=1e-3)
    assert ours["iwae_bound"] == pytest.approx(-258.1 / 3 + 2)
    assert ours["reconstruction"] - ours["kl"] == pytest.approx(ours["test_elbo"])
    assert (ours["paper"], ours["paper_bar"]) == (-86.0, 0.05)
    assert ours["above_normal"] == pytest.approx(0.8 / 3)
    assert ours["p_vs_normal"] == pytest.approx(p_of([0.1, 0.3, 0.4]))
    assert math.isnan(found["normal", 0.002]["p_vs_normal"]), "not against itself"
    shown = cells(elbos, tmp_path)
    row = shown["WN", "0.002"]
    assert (row["paper"], row["test ELBO (nats)"]) == ("-86.00", "-86.03 ± 0.29")
    assert (row["above normal"], row["n"], row["status"]) == ("+0.27", "3", "done")
    assert (row["sd (paper's bar)"], row["IWAE bound, k = 128"]) == ("0.115 (0.050)", "-84.03 ± 0.29")
    assert "bits/dim" not in row, "not customary for binary pixels"
    assert (shown["BN", "0.002"]["paper"], shown["BN", "0.002"]["KL"]) == ("–", "pending")


def test_a_row_may_name_another_published_curve_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_curve(tmp_path, "paper/bounds.yaml", {"normal": [[20, -86.25, 0.2]], "WN": [[20, -86.0, 0.05]]})
    wide = {"name": "wide", "norm": "weight_norm_init", "lrs": [0.002], "curve": "WN"}
    rows = [*ELBOS["rows"][:2], wide | {"set": {"model.weight_init": 0.1}}]
    plan = declare(tmp_path, monkeypatch, ELBOS | {"rows": rows})
    found = lines(plan, tmp_path)
    assert (found["wide", 0.002]["paper"], found["wide", 0.002]["paper_bar"]) == (-86.0, 0.05)
    assert found["normal", 0.002]["paper"] == -86.25


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


def test_only_a_point_at_the_last_epoch_is_the_paper_s(elbos: Plan, tmp_path: Path) -> None:
    write_elbos(tmp_path, elbos)
    publish_curve(tmp_path, "paper/bounds.yaml", {"WN": [[10, -91.0], [30, -85.0]]})  # nothing at 20
    row = cells(elbos, tmp_path)["WN", "0.002"]
    assert "paper" not in row
    assert row["sd (paper's bar)"] == "0.115"


def test_bytes_are_told_as_a_density_and_in_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = VAE | {"model": "resnet_vae", "data": "cifar10", "data.whiten": False}
    plan = declare(
        tmp_path, monkeypatch, {k: v for k, v in ELBOS.items() if k != "curves"} | {"fixed": fixed}
    )
    bits = 3.64
    write_seeds(tmp_path, plan, "none_init", 0.002, [bits * 3072 * math.log(2)])
    row = lines(plan, tmp_path)["normal", 0.002]
    assert row["bits_per_dim"] == pytest.approx(bits)
    assert row["test_elbo"] == pytest.approx((8 - bits) * 3072 * math.log(2))  # 9284: the paper's is 9277
    assert row["reconstruction"] - row["kl"] == pytest.approx(row["test_elbo"])
    shown = cells(plan, tmp_path)
    assert shown["normal", "0.002"]["test ELBO (nats)"] == "9284.0 ± n/a"
    assert (shown["normal", "0.002"]["bits/dim"], shown["normal", "0.002"]["sd (paper's bar)"]) == (
        "3.640",
        "n/a",
    )
    assert shown["WN", "0.002"]["bits/dim"] == "pending"


def test_an_iwae_bound_of_other_samples_is_not_in_the_mean(elbos: Plan, tmp_path: Path) -> None:
    for seed, (end, trainer) in enumerate(
        [(86, {}), (87, {"iwae_samples": 5000}), (88, {"iwae_images": 1000})]
    ):
        config = run_of(elbos, "none_init", 0.002, seed)
        other = config.model_copy(update={"trainer": config.trainer.model_copy(update=trainer)})
        write_record(tmp_path / NAME, other, float(end))
    row = cells(elbos, tmp_path)["normal", "0.002"]
    assert (row["IWAE bound, k = 128"], row["n"]) == ("-84.00 ± n/a", "3")


def test_a_figure_shows_the_late_epochs(elbos: Plan, tmp_path: Path) -> None:
    write_elbos(tmp_path, elbos)
    axes = curves.by_epoch(elbos, rows_of(elbos, tmp_path), ["test_loss"]).axes[0]
    low, high = axes.get_ylim()
    assert -93 < low < -91, "not the bounds before training"
    assert -85.9 < high < -85


def test_a_learning_rate_is_chosen_by_the_lowest_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[float, list[float | None]]
    ends = {0.001: [25.0, 26.0], 0.01: [22.0, 22.4], 0.1: [23.2, 23.2], 1.0: [21, None]}
    fixed = {key: VAE[key] for key in ("model", "data")}
    grid = {"norm": ["none"], "optim.lr": list(ends), "seed": [0, 1]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "fixed": fixed, "grid": grid})
    for lr, own in ends.items():
        write_seeds(tmp_path, plan, "none", lr, own)
    row = by_norm(plan, tmp_path)["none"]
    assert (row["lr"], row["valid_loss"], row["diverged"]) == (0.01, pytest.approx(22.2), 1)
    # means are 25.5, 22.2, 23.2 and diverged: 23.2 is passed at 1/3.3 of a decade below 0.01
    assert row["width_1nat"] == pytest.approx(1 / 3.3 + 1)
    assert row["width_3nats"] == pytest.approx(3 / 3.3 + 1)
    # per seed: mean of 25, 22, 23.2, 21 less 21, and of 26, 22.4, 23.2 and the initial 60 less 22.4
    assert row["sensitivity"] == pytest.approx(((91.2 / 4 - 21) + (131.6 / 4 - 22.4)) / 2)
    shown = cells(plan, tmp_path)["none", "0.01"]
    assert shown["test ELBO (nats)"] == f"-22.20 ± {12.706 * 0.2:.2f}"  # t(0.975, 1) of 22.0 and 22.4
    assert (shown["width 1 nat"], shown["width 3 nats"]) == ("1.30", "1.91")


@pytest.mark.parametrize(
    ("name", "epochs", "read_off"),
    [
        (
            "vae_mnist",
            [10, 50, 100, 200, 300],
            {
                "normal": [-94.42, -87.30, -86.16, -85.81, -85.83],
                "WN": [-93.97, -87.28, -86.05, -85.41, -85.33],
            },
        ),
        (
            "vae_cifar10",
            [50, 100, 200, 300, 450],
            {"normal": [8307, 8624, 8888, 9023, 9148], "WN": [8549, 8849, 9095, 9196, 9277]},
        ),
    ],
)
def test_published_curves_are_those_of_figure_3(
    name: str, epochs: list[int], read_off: dict[str, list[float]]
) -> None:
    curves = experiments.published(experiments.load(name))
    for row, elbos in read_off.items():
        points = {point.epoch: point for point in curves[row]}
        assert [points[epoch].value for epoch in epochs] == pytest.approx(elbos, rel=1e-4)
        assert math.isnan(points[epochs[-1]].bar) is (name == "vae_cifar10"), "drawn for MNIST alone"


def test_a_grid_over_anything_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"norm": ["none"], "trainer.batch_size": [50, 100], "optim.lr": [0.1, 0.2], "seed": [0]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "fixed": FIXED, "grid": grid})
    assert plan.facets == ("trainer.batch_size",)
    names = [group.name for group in plan.groups]
    assert names == ["trainer.batch_size=50, none", "trainer.batch_size=100, none"]
