"""A rerun is reproduced on other kernels, and not with another method: on runs that are really trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import LRS, SWEEP, TABLE, declare, rows_of, write_seeds, write_sweep

from wn.config import Config
from wn.config.compose import compose
from wn.report import collect, compare
from wn.report.collect import Rows
from wn.report.plan import Plan
from wn.sweep import train_sweep

REAL: dict[str, Any] = {
    "title": "Trained in a second",
    "claim": "None.",
    "fixed": {"data": "digits", "optim": "sgd", "model.widths": [16], "trainer.epochs": 3},
    "grid": {
        "norm": ["none", "batch_norm"],
        "optim.lr": [0.003, 0.01, 0.1],  # the lower two are under-trained
        "seed": [0, 1, 2],
    },
}
QUIET = {"trainer.device": "cpu", "trainer.progress": False, "tracking.mode": "disabled"}


def train(
    plan: Plan, folder: Path, members: int | None = None, change: Callable[[Config], Config] = lambda own: own
) -> Rows:
    """Train all runs of a plan in silence, with settings that are changed behind its back."""
    here = compose({"runs_dir": str(folder), "experiment_name": plan.name, **QUIET})
    runs = {i: own for group in plan.groups for i, own in group.configs.items()}
    changed = {i: change(own).placed_as(here) for i, own in runs.items()}
    records = {record.content["run_id"]: record for record in train_sweep([*changed.values()], members, 1)}
    return collect.of_records(plan, {i: records[own.run_id] for i, own in changed.items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Rows]]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trained")
        plan = declare(folder, patch, REAL)
        yield plan, train(plan, folder / "runs")


@pytest.fixture
def again(trained: tuple[Plan, Rows], tmp_path: Path) -> Callable[..., str]:
    """Trains a second time and returns the closing line."""
    plan, committed = trained

    def again(**how: Any) -> str:
        (line,) = compare.closing_line(plan, train(plan, tmp_path, **how), committed)
        return line

    return again


def test_the_same_code_is_reproduced_on_other_kernels(again: Callable[..., str]) -> None:
    assert again(members=1).startswith("reproduced: 2 rows of 2, largest difference ")


def test_another_momentum_of_the_running_averages_is_not(again: Callable[..., str]) -> None:
    def change(own: Config) -> Config:
        return own.model_copy(update={"norm": own.norm.model_copy(update={"momentum": 0.01})})

    line = again(change=change)
    assert re.match(r"not reproduced: 1 of 2 rows: batch_norm: (best lr|difference)", line)


def test_a_learning_rate_that_is_off_by_a_tenth_is_not(again: Callable[..., str]) -> None:
    def change(own: Config) -> Config:
        return own.model_copy(update={"optim": own.optim.model_copy(update={"lr": 1.1 * own.optim.lr})})

    line = again(change=change)
    assert re.fullmatch(
        r"not reproduced: 2 of 2 rows: none: .*; batch_norm: .*% at small learning rates", line
    )


def test_swapped_methods_are_not(trained: tuple[Plan, Rows]) -> None:
    plan, committed = trained
    none, batch = plan.groups
    other = {batch.ids[place]: run_id for place, run_id in none.ids.items()}
    other |= {run_id: i for i, run_id in other.items()}
    swapped = committed.runs.rename(index=other).assign(
        row=lambda runs: [plan.group_of[i].name for i in runs.index]
    )
    (line,) = compare.closing_line(plan, Rows(swapped, committed.curves), committed)
    assert line.startswith("not reproduced: 2 of 2 rows: none: ")
    assert "; batch_norm: " in line


# By hand ---------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return declare(tmp_path, monkeypatch, SWEEP)


def changed(rows: Rows, column: str, by_id: dict[str, float]) -> Rows:
    """The rows, with a number of some runs replaced."""
    runs = rows.runs.copy()
    for run_id, value in by_id.items():
        runs.loc[run_id, column] = value
    return rows._replace(runs=runs)


def shifted(plan: Plan, rows: Rows, by: dict[tuple[float, int], float]) -> Rows:
    """The rows, with the validation losses of some runs of ``none`` changed."""
    ids = {plan.groups[0].ids[place]: more for place, more in by.items()}
    return changed(rows, "valid_loss", {i: rows.runs.loc[i, "valid_loss"] + more for i, more in ids.items()})


def test_the_statistic_by_hand(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    # Losses of none are 10 x error + seed / 3. At 0.01: 1, 1.1 + 1/3, 1.2 + 2/3: sd = 0.1 + 1/3, as at 0.1;
    # at 1.0 a seed diverged.
    new = shifted(plan, old, {(0.01, 0): 0.2, (0.1, 0): 0.1, (0.1, 2): -0.1, (1.0, 1): 1e9})
    sd = 0.1 + 1 / 3
    d, r = compare.differences(plan.groups[0], new.runs, old.runs, 1)
    assert d == pytest.approx([(0.2 + 0.1) / 2 / sd, 0, -0.05 / sd])
    assert len(r) == 0, "only one learning rate is at most a tenth of the best"
    mean, half = np.mean(d), 4.303 * np.std(d, ddof=1) / math.sqrt(3)
    (line,) = compare.closing_line(plan, new, old)
    assert abs(mean) + half > 0.5
    assert line == f"not reproduced: 1 of 2 rows: none: difference {mean:+.2f} ± {half:.2f} sd"
    new = shifted(plan, old, {(0.01, seed): 0.4 * sd for seed in range(3)})
    assert compare.closing_line(plan, new, old) == [
        "reproduced: 2 rows of 2, largest difference +0.20 ± 0.00 sd (none)"
    ]


def test_the_difference_at_small_rates_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"norm": ["none"], "optim.lr": [0.001, 0.01, 0.1], "seed": [0, 1]}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "grid": grid})
    for lr, ends in ((0.001, [0.2, 0.4]), (0.01, [0.1, 0.2]), (0.1, [0.0, 0.1])):
        write_seeds(tmp_path, plan, "none", lr, list(ends))
    old = rows_of(plan, tmp_path)
    # Losses of seed 0: 2 and 1, relative differences 0.02 and 0.01; of seed 1 none.
    new = shifted(plan, old, {(0.001, 0): 0.04, (0.01, 0): 0.01, (0.1, 1): 0.1})
    assert compare.differences(plan.groups[0], new.runs, old.runs, 2)[1] == pytest.approx([0.015, 0])
    exact = {run_id: 1.02 * loss for run_id, loss in old.runs["valid_loss"].items()}
    (line,) = compare.closing_line(plan, changed(old, "valid_loss", exact), old)
    assert line == "not reproduced: 1 of 1 rows: none: difference +2.0 ± 0.0% at small learning rates"


def test_a_run_that_diverges_only_here_is_not_reproduced(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    new = changed(old, "valid_loss", {plan.groups[1].ids[0.01, 1]: math.nan})
    new.runs.loc[plan.groups[1].ids[0.01, 1], "status"] = "diverged"
    (line,) = compare.closing_line(plan, new, old)
    assert line.startswith("not reproduced: 1 of 2 rows: weight_norm: ")


def test_a_row_whose_every_rate_has_a_diverged_seed_is_not_judged(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    rows = rows_of(plan, tmp_path)
    gone = [plan.groups[0].ids[lr, 0] for lr in LRS]
    rows.runs.loc[gone, ["status", "valid_loss"]] = ["diverged", math.nan]
    left = "; not judged, as at every rate a committed seed diverged: none"
    (line,) = compare.closing_line(plan, rows, rows)
    assert line == f"reproduced: 1 rows of 1, largest difference +0.00 ± 0.00 sd (weight_norm){left}"
    other = plan.groups[1].ids
    rows.runs.loc[[other[lr, 0] for lr in LRS], ["status", "valid_loss"]] = ["diverged", math.nan]
    (line,) = compare.closing_line(plan, rows, rows)
    assert line == f"compared with the committed rows: none is judged{left}, weight_norm"


def test_a_best_rate_may_move_to_a_neighbour(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old, ids = rows_of(plan, tmp_path), plan.groups[1].ids
    new = changed(old, "valid_error", {ids[LRS[2], seed]: 0.0 for seed in range(3)})
    assert compare.closing_line(plan, new, old)[0].startswith("reproduced: 2 rows of 2")
    old = changed(old, "valid_error", {ids[LRS[0], seed]: 0.001 for seed in range(3)})
    assert compare.closing_line(plan, new, old) == [
        "not reproduced: 1 of 2 rows: weight_norm: best lr 1, committed 0.01"
    ]


def test_only_complete_rows_are_judged(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    part = old._replace(runs=old.runs[:9])
    rest = "; 1 of 2 rows not complete, here or as committed"
    (line,) = compare.closing_line(plan, part, old)
    assert line == f"reproduced: 1 rows of 1, largest difference +0.00 ± 0.00 sd (none){rest}"
    few = old._replace(runs=old.runs[:2])
    assert "not judged; 2 of 2 rows not complete" in compare.closing_line(plan, few, old)[0]
    assert compare.closing_line(plan, old, old._replace(runs=old.runs[:0])) == []
    one = declare(tmp_path, monkeypatch, TABLE | {"seeds": [0]}, "one")
    for group in one.groups:
        for lr in group.lrs:
            write_seeds(tmp_path, one, group.norm, lr, [0.1])
    rows = rows_of(one, tmp_path)
    assert compare.closing_line(one, rows, rows) == ["compared with the committed rows: not judged (n = 1)"]


def test_where_nothing_is_held_out_the_test_loss_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = declare(tmp_path, monkeypatch, TABLE)
    for group in plan.groups:
        for lr in group.lrs:
            write_seeds(tmp_path, plan, group.norm, lr, [0.1, 0.2, 0.3])
    rows = rows_of(plan, tmp_path)
    blind = rows._replace(runs=rows.runs.assign(valid_loss=math.nan))
    off = rows._replace(runs=blind.runs.assign(test_loss=rows.runs["test_loss"] + 9))
    assert compare.closing_line(plan, blind, blind)[0].startswith("reproduced: 3 rows of 3")
    assert compare.closing_line(plan, off, blind)[0].startswith("not reproduced: 3 of 3")
