"""A rerun is reproduced on other kernels, and not with another method: on runs that are really trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_cases import LRS, NAME, SWEEP, TABLE, declare, rows_of, write_seeds, write_sweep

from wn.config import OptimConfig
from wn.config.compose import compose
from wn.report import compare
from wn.report.collect import Rows
from wn.report.plan import Plan
from wn.sweep import train_sweep

REAL: dict[str, Any] = {
    "title": "Trained in a second",
    "claim": "None.",
    "fixed": {"data": "digits", "optim": "sgd", "model.widths": [32], "trainer.epochs": 3},
    "grid": {
        "norm": ["none", "batch_norm", "weight_norm"],
        "optim.lr": [0.003, 0.01, 0.03],
        "seed": [0, 1, 2, 3, 4],
    },
}
QUIET = {"trainer.device": "cpu", "trainer.progress": False, "tracking.mode": "disabled"}


def train(plan: Plan, folder: Path, members: int | None = None) -> Rows:
    """Train all runs of a plan, on one processor and in silence."""
    here = compose({"runs_dir": str(folder), "experiment_name": plan.name, **QUIET})
    train_sweep([own.placed_as(here) for group in plan.groups for own in group.configs.values()], members)
    return rows_of(plan, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Rows]]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trained")
        plan = declare(folder, patch, REAL)
        yield plan, train(plan, folder / "runs")


@pytest.fixture
def again(trained: tuple[Plan, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Trains a second time and returns the closing line."""
    plan, committed = trained

    def again(**how: Any) -> str:
        (line,) = compare.closing_line(plan, train(plan, tmp_path, **how), committed)
        return line

    return again


def test_the_same_code_is_reproduced_on_other_kernels(again: Callable[..., str]) -> None:
    line = again(members=1)
    assert line.startswith("reproduced: 3 rows of 3, largest difference ")


def test_other_last_digits_are_reproduced(again: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from wn.stack import Stack

    build = Stack.__init__

    def perturbed(self: Stack, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        with torch.no_grad():
            for parameter in self.params.values():
                parameter.mul_(1 + 1e-6 * torch.randn_like(parameter))

    monkeypatch.setattr(Stack, "__init__", perturbed)
    assert again().startswith("reproduced: 3 rows of 3")


def test_another_momentum_of_the_running_averages_is_not(
    again: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wn.norm.layer import NormalizedLayer

    build = NormalizedLayer.__init__

    def other(self: NormalizedLayer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs | {"momentum": 0.01})

    monkeypatch.setattr(NormalizedLayer, "__init__", other)
    line = again()
    assert re.match(r"not reproduced: 1 of 3 rows: batch_norm: (best lr|difference)", line)


def test_a_learning_rate_that_is_off_by_a_tenth_is_not(
    again: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wn.optim import Optimizer

    build = Optimizer.__init__

    def other(self: Optimizer, configs: list[OptimConfig], *args: Any, **kwargs: Any) -> None:
        build(self, [c.model_copy(update={"lr": 1.1 * c.lr}) for c in configs], *args, **kwargs)

    monkeypatch.setattr(Optimizer, "__init__", other)
    assert again().startswith("not reproduced: ")


def test_swapped_methods_are_not(trained: tuple[Plan, Rows]) -> None:
    plan, committed = trained
    swapped = dict(committed.runs)
    none, batch = plan.groups[0], plan.groups[1]
    for place, run_id in none.ids.items():
        other = batch.ids[place]
        swapped[run_id] = {**committed.runs[other], "run_id": run_id}
        swapped[other] = {**committed.runs[run_id], "run_id": other}
    (line,) = compare.closing_line(plan, Rows(swapped, {}), committed)
    assert line.startswith("not reproduced: 2 of 3 rows: none: ")
    assert "; batch_norm: " in line


# By hand ---------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    return declare(tmp_path, monkeypatch, SWEEP)


def shifted(plan: Plan, rows: Rows, norm: str, by: dict[tuple[float, int], float]) -> Rows:
    """The rows, with the validation losses of some runs changed."""
    runs = dict(rows.runs)
    group = next(group for group in plan.groups if group.norm == norm)
    for place, more in by.items():
        run = runs[group.ids[place]]
        runs[group.ids[place]] = {**run, "valid_loss": run["valid_loss"] + more}
    return Rows(runs, {})


def test_the_statistic_by_hand(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    # Losses of none are 10 x error + seed / 3. At 0.01: 1, 1.1 + 1/3, 1.2 + 2/3: sd = 0.1 + 1/3, as at 0.1;
    # at 1.0 a seed diverged.
    new = shifted(plan, old, "none", {(0.01, 0): 0.2, (0.1, 0): 0.1, (0.1, 2): -0.1, (1.0, 1): 1e9})
    sd = 0.1 + 1 / 3
    d = compare.differences(plan.groups[0], new, old)
    assert d == pytest.approx([(0.2 + 0.1) / 2 / sd, 0, -0.05 / sd])
    mean, half = np.mean(d), 4.303 * np.std(d, ddof=1) / math.sqrt(3)
    (line,) = compare.closing_line(plan, new, old)
    assert abs(mean) + half > 0.5
    assert line == f"not reproduced: 1 of 2 rows: none: difference {mean:+.2f} ± {half:.2f} sd"
    new = shifted(plan, old, "none", {(0.01, seed): 0.4 * sd for seed in range(3)})
    assert compare.closing_line(plan, new, old) == [
        "reproduced: 2 rows of 2, largest difference +0.20 ± 0.00 sd (none)"
    ]


def test_a_run_that_diverges_only_here_is_not_reproduced(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    run_id = plan.groups[1].ids[0.01, 1]
    runs = {
        **old.runs,
        run_id: {**old.runs[run_id], "status": "diverged", "valid_loss": None, "valid_error": None},
    }
    (line,) = compare.closing_line(plan, Rows(runs, {}), old)
    assert line.startswith("not reproduced: 1 of 2 rows: weight_norm: ")


def test_a_best_rate_may_move_to_a_neighbour(plan: Plan, tmp_path: Path) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)

    def best_at(lr: float) -> list[str]:
        runs = dict(old.runs)
        for seed in range(3):
            run_id = plan.groups[1].ids[lr, seed]
            runs[run_id] = {**runs[run_id], "valid_error": 0.0}
        return compare.closing_line(plan, Rows(runs, {}), old)

    assert best_at(LRS[2])[0].startswith("reproduced: 2 rows of 2")
    for place, run_id in plan.groups[1].ids.items():
        if place[0] == 0.01:
            old.runs[run_id] = {**old.runs[run_id], "valid_error": 0.001}
    assert best_at(LRS[2]) == ["not reproduced: 1 of 2 rows: weight_norm: best lr 1, committed 0.01"]


def test_only_complete_rows_are_judged(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path, plan)
    old = rows_of(plan, tmp_path)
    part = Rows({i: old.runs[i] for i in list(old.runs)[:9]}, {})
    rest = "; 1 of 2 rows not complete, here or as committed"
    (line,) = compare.closing_line(plan, part, old)
    assert line == f"reproduced: 1 rows of 1, largest difference +0.00 ± 0.00 sd (none){rest}"
    few = Rows({i: old.runs[i] for i in list(old.runs)[:2]}, {})
    assert "not judged; 2 of 2 rows not complete" in compare.closing_line(plan, few, old)[0]
    assert compare.closing_line(plan, old, Rows({}, {})) == []
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
    blind = Rows({i: {**run, "valid_loss": None} for i, run in rows.runs.items()}, {})
    off = Rows({i: {**run, "test_loss": run["test_loss"] + 9} for i, run in blind.runs.items()}, {})
    assert compare.closing_line(plan, blind, blind)[0].startswith("reproduced: 3 rows of 3")
    assert compare.closing_line(plan, off, blind)[0].startswith("not reproduced: 3 of 3")
    assert plan.name == NAME
