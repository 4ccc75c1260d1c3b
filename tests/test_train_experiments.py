"""Experiments whose runs are no grid, on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_cases import NAME
from table_cases import CHOICE, commit_choice, declare_table, lines_of
from train_cases import Call, records

from wn import experiments, launcher

Run = tuple[str, float, int]


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_table(tmp_path, monkeypatch, fixed={"data": "digits", "optim": "adam"})


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs in the order in which a sweep is given them; none is trained."""
    given: list[Run] = []

    def listed(self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        configs = map(self.compose, job_overrides)
        given.extend((config.norm.label, config.optim.lr, config.seed) for config in configs)
        return []

    monkeypatch.setattr(launcher.StackedLauncher, "launch", listed)
    return given


ROUND = [("weight_norm", 0.1), ("batch_norm", 0.1), ("none_init", 0.01), ("none_init", 0.1)]


def test_every_row_is_trained_with_the_first_seed_before_the_next(call: Call, order: list[Run]) -> None:
    assert call(f"+experiment={NAME}").status == 0
    assert order == [(norm, lr, seed) for seed in (0, 1, 2) for norm, lr in ROUND]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("seed=1", [(norm, lr, 1) for norm, lr in ROUND]),
        ("seed=2,0 norm=batch_norm", [("batch_norm", 0.1, 0), ("batch_norm", 0.1, 2)]),
        ("optim.lr=1e-2 seed=0,1", [("none_init", 0.01, 0), ("none_init", 0.01, 1)]),
        (
            "seed=0 'norm=choice(weight_norm,none_init)' optim.lr=0.1",
            [(n, 0.1, 0) for n in ("weight_norm", "none_init")],
        ),
    ],
)
def test_arguments_leave_the_runs_that_have_their_values(
    call: Call, order: list[Run], words: str, left: list[Run]
) -> None:
    assert call(f"+experiment={NAME} {words}").status == 0
    assert order == left


def test_other_arguments_hold_for_every_run(call: Call, order: list[Run]) -> None:
    assert call(f"+experiment={NAME} seed=0 norm.eps=1e-5,1e-3").status == 0
    assert order == [(norm, lr, 0) for norm, lr in ROUND for _ in range(2)]


@pytest.mark.parametrize("words", ["optim.lr=0.5", "norm=weight_norm optim.lr=0.01", "seed=7"])
def test_a_run_that_the_table_has_not_is_refused(call: Call, tmp_path: Path, words: str) -> None:
    result = call(f"+experiment={NAME} {words}")
    assert (result.status, result.out) == (2, "")
    assert result.err == f"error: {words}: the experiment has no such run; its file names those that it has\n"
    assert not (tmp_path / "runs").exists()


def test_a_chosen_learning_rate_is_trained_as_well(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[Run]
) -> None:
    commit_choice(tmp_path, "weight_norm,4,4,0.02", "batch_norm,4,4,0.1", "none_init,3,4,1.0")
    declare_table(tmp_path, monkeypatch, fixed={"data": "digits"}, chosen_by=CHOICE)
    assert call(f"+experiment={NAME} seed=0").status == 0
    assert order == [(*ROUND[0], 0), ("weight_norm", 0.02, 0), *((*run, 0) for run in ROUND[1:])]


def test_what_is_trained_is_in_the_table(call: Call, tmp_path: Path) -> None:
    result = call(f"+experiment={NAME} seed=0,2")
    assert (result.status, result.err) == (0, "")
    assert len(records(tmp_path / "runs" / NAME)) == 8
    lines = lines_of(experiments.load(NAME), tmp_path / "runs")
    assert [(line["norm"], line["lr"], line["n"]) for line in lines.values()] == [(*run, 2) for run in ROUND]
    again = call(f"+experiment={NAME} seed=0,2")
    assert again.out == "8 runs: 8 done before, 0 to train\n"


def test_a_field_that_the_experiment_s_preset_has_can_be_set(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_table(tmp_path, monkeypatch, fixed={"data": "mnist", "optim": "adam"})
    result = call(f"+experiment={NAME} data.root=missing data.download=false")
    assert result.status == 2
    assert result.err.startswith("error: data.root=missing: no such folder")
