"""The report's statistics against closed forms, scipy, and numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import ERRORS, LRS, NAME, SWEEP, by_norm, declare, write_run, write_sweep

from wn.report import statistics
from wn.report.plan import Plan


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return declare(tmp_path, monkeypatch, SWEEP)


def sweep(error: Any, loss: Any = None, diverged: Any = None) -> statistics.Sweep:
    error = np.array(error, dtype=float)
    gone = np.zeros(error.shape, dtype=bool) if diverged is None else np.array(diverged)
    worst = np.where(gone, np.inf, 0.0)
    return statistics.Sweep(
        np.array([10.0**i for i in range(len(error))]),
        list(range(error.shape[1])),
        ~gone.any(axis=1),
        error + worst,
        (error if loss is None else np.array(loss, dtype=float)) + worst,
        *np.full((2, *error.shape), 2.0),
    )


def test_interval_is_that_of_the_t_table() -> None:
    mean, half_width, n = statistics.estimate(np.array([1.0, 2.0, 3.0]))
    assert (mean, n) == (2.0, 3)
    assert half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)  # t(0.975, 2) as tables print it
    mean, half_width, n = statistics.estimate(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)


def test_interval_without_spread_is_zero_and_of_one_value_unknown() -> None:
    assert statistics.estimate(np.array([0.3, 0.3])).half_width == 0
    assert math.isnan(statistics.estimate(np.array([0.3])).half_width)
    assert statistics.estimate(np.array([0.3])).mean == 0.3


def test_best_learning_rate() -> None:
    assert statistics.best_lr(sweep([[0.3, 0.1], [0.1, 0.2], [0.3, 0.3]])) == 1
    assert statistics.best_lr(sweep([[0.2], [0.2], [0.2]], loss=[[3], [1], [2]])) == 1, "ties by loss"
    assert statistics.best_lr(sweep([[0.2], [0.2]])) == 0, "then the smaller"
    gone = [[False, False], [True, False]]
    assert statistics.best_lr(sweep([[0.3, 0.3], [0.0, 0.0]], diverged=gone)) == 0, "never a diverged one"
    assert statistics.best_lr(sweep([[0.3], [0.3]], diverged=[[True], [True]])) is None


def test_equal_mean_errors_tie_in_spite_of_rounding() -> None:
    assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])  # the sums differ in the last digit
    assert statistics.best_lr(sweep([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], loss=[[2] * 3, [1] * 3])) == 1
    assert statistics.best_lr(sweep([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], loss=[[1] * 3, [2] * 3])) == 0


def test_sensitivity_counts_a_diverged_run_at_its_initial_loss() -> None:
    losses = [[0.5, 1.0], [0.2, 0.4], [7.0, 1.0]]
    gone = [[False, False], [False, False], [False, True]]
    # seed 0: (0.5 + 0.2 + 2)/3 - 0.2, the 7 counting as its initial 2; seed 1: (1 + 0.4 + 2)/3 - 0.4
    expected = [0.9 - 0.2, 3.4 / 3 - 0.4]
    assert statistics.sensitivity(sweep(losses, losses, gone)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "decades", "is_open"),
    [
        ([0.5, 0.03, 0.02, 0.04, np.inf], 1.5, False),  # 0 + 1 + half the way from 0.02 to 0.04 + 0
        ([0.02, 0.04, 0.02, 0.06, 0.06], 0.5 + 0.5 + 0.25, True),  # two stretches
        ([0.03] * 5, 4.0, True),
        ([0.05, 0.05, 0.05, 0.05, 0.05], 0.0, False),
        ([np.inf, 0.02, np.inf, np.inf, 0.02], 0.0, True),  # nothing between a usable rate and divergence
    ],
)
def test_usable_width(error: list[float], decades: float, is_open: bool) -> None:
    lrs = np.array([1e-3, 1e-2, 1e-1, 1.0, 10.0])
    width, at_end = statistics.usable_width(lrs, np.array(error), 0.03)
    assert width == pytest.approx(decades)
    assert at_end is is_open


def test_paired_test_is_that_of_student() -> None:
    t = 2 / (1 / math.sqrt(3))
    assert statistics.paired_p([0.01, 0.02, 0.03]) == pytest.approx(1 - t / math.sqrt(t * t + 2))  # 2 degrees
    assert math.isnan(statistics.paired_p([0.1, 0.1])), "no spread"
    assert math.isnan(statistics.paired_p([0.1]))
    assert math.isnan(statistics.paired_p([]))


def test_table_by_hand(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    rows = by_norm(plan, tmp_path)
    none, ours = rows["none"], rows["weight_norm"]
    assert list(rows) == ["none", "weight_norm"]
    assert [none[key] for key in ("runs", "planned", "diverged", "n")] == [9, 9, 1, 3]
    assert (none["lr"], none["largest_stable_lr"], none["largest_stable_lr_open"]) == (0.1, 0.1, False)
    assert (ours["lr"], ours["largest_stable_lr"], ours["largest_stable_lr_open"]) == (0.1, 1.0, True)
    assert none["test_error_percent"] == pytest.approx(5)
    assert none["test_error_percent_half_width"] == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    # weight_norm's mean error is 0.06, 0.03, 0.05: it crosses 0.04 at 1/3 and 1/2, 0.045 at 1/2 and 3/4
    assert ours["width_1pp"] == pytest.approx(1 / 3 + 1 / 2)
    assert ours["width_x1.5"] == pytest.approx(1 / 2 + 3 / 4)
    # none's is 0.11, 0.05 and diverged: it crosses 0.06 at 1/6
    assert none["width_1pp"] == pytest.approx(1 / 6)
    # losses are 10 x error + seed / 3, at most the initial 2; differences to the best lose the seed
    gaps = [[0.6, 0, 2 - 0.4], [0.6, 0, 2 - 0.5 - 1 / 3], [2 - 0.6 - 2 / 3 - 0.133333333, 0, 2 - 0.6 - 2 / 3]]
    assert none["sensitivity"] == pytest.approx(np.mean(gaps), rel=1e-6)
    d = np.array([-0.01, -0.03, -0.02])
    t = abs(d.mean()) / (d.std(ddof=1) / math.sqrt(3))
    assert ours["p_vs_none"] == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert math.isnan(none["p_vs_none"])


def test_a_width_that_takes_in_the_error_before_training_is_none(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ERRORS, "none", [[0.8] * 3, [0.7] * 3, [0.75] * 3])
    write_sweep(tmp_path, plan)
    row = by_norm(plan, tmp_path)["none"]
    assert row["width_1pp"] == pytest.approx(0.1 + 0.2)
    assert "width_x1.5" not in row


def test_test_set_is_read_at_the_chosen_learning_rate_only(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    before = by_norm(plan, tmp_path)
    for path in (tmp_path / NAME).glob("*/record.json"):
        content = json.loads(path.read_text())
        if content["config"]["optim"]["lr"] != 0.1:
            content["final"]["test_error"] = 0.0
            path.write_text(json.dumps(content))
    assert repr(by_norm(plan, tmp_path)) == repr(before)


def test_everything_diverged_is_a_row_and_no_crash(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ERRORS, "none", [[None] * 3] * 3)
    write_sweep(tmp_path, plan)
    row = by_norm(plan, tmp_path)["none"]
    assert (row["diverged"], row["runs"], row["n"]) == (9, 9, 3)
    assert math.isnan(row["lr"])
    assert math.isnan(row["test_error_percent"])
    assert not {"sensitivity", "width_1pp", "largest_stable_lr"} & row.keys()


def test_where_a_seed_diverged_at_every_rate_there_is_no_best_one_and_still_a_sensitivity(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ERRORS, "none", [[None, 0.05, 0.05]] * 3)
    write_sweep(tmp_path, plan)
    row = by_norm(plan, tmp_path)["none"]
    assert math.isnan(row["lr"])
    assert row["sensitivity"] == pytest.approx(0.0)  # equally good, and bad, at every rate
    assert not {"width_1pp", "largest_stable_lr", "edge"} & row.keys()


def test_a_seed_counts_once_it_is_complete(plan: Plan, tmp_path: Path) -> None:
    for lr in LRS:
        write_run(tmp_path, plan, "weight_norm", lr, 0)
    write_run(tmp_path, plan, "weight_norm", 0.01, 1)
    write_run(tmp_path, plan, "none", 0.1, 0)
    rows = by_norm(plan, tmp_path)
    assert (rows["weight_norm"]["n"], rows["weight_norm"]["runs"]) == (1, 4)
    assert rows["weight_norm"]["test_error_percent"] == pytest.approx(3)
    assert math.isnan(rows["weight_norm"]["test_error_percent_half_width"])
    assert (rows["none"]["n"], rows["none"]["runs"]) == (0, 1)
    assert math.isnan(rows["none"]["lr"])
