"""A stopped command goes on to the same numbers, whatever stops it: signals, or the clock."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from stop_cases import ENDING, SIGNALS, late, send, when
from sweep_cases import outcome
from train_cases import SWEEP, Call, declare, records, start

from wn import stops, sweep
from wn.trainer import Trainer


@pytest.mark.parametrize(
    ("words", "number", "at"),
    [
        ("norm=weight_norm", signal.SIGINT, 1),
        (SWEEP, signal.SIGTERM, 4),
        (SWEEP, signal.SIGINT, 6),
        (SWEEP, signal.SIGUSR1, 5),
        ("-m norm=none,weight_norm hydra/launcher=basic", signal.SIGTERM, 5),
    ],
)
def test_a_signal_stops_at_the_step_and_the_same_command_goes_on(
    call: Call, tmp_path: Path, steps: list[int], words: str, number: int, at: int
) -> None:
    """At the first step, amid an epoch and at the end of one, of the last stack of a sweep."""
    words += " trainer.batch_size=300 trainer.epochs=3"
    assert call(f"{words} runs_dir=whole").status == 0
    total = len(steps)
    steps.clear()
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda t: t.step == at and t.config.norm.label == "weight_norm", send(number))
        result = call(f"{words} runs_dir=cut")
    name, status = SIGNALS[signal.Signals(number)]
    what = "(4 runs)" if words.startswith(SWEEP) else "lr=0.1 seed=0"
    so_far = "; 4 of 8 runs are done" if "(4 runs)" in what else ""
    line = f"stopped: mlp weight_norm sgd {what}, step {at} of 9 ({name}){so_far}{ENDING}"
    assert (result.status, result.err) == (status, line)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    found = records(tmp_path / "cut/adhoc").values()
    assert {r["status"] for r in found if r["norm"] == "weight_norm"} == {"running"}
    again = call(f"{words} runs_dir=cut")
    assert (again.status, again.err) == (0, "")
    assert len(steps) == total  # none was taken twice
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_acts_at_once(call: Call, tmp_path: Path, number: int) -> None:
    assert call("runs_dir=whole").status == 0
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda t: t.step == 2, send(number, 2))
        result = call("runs_dir=cut")
    assert result.status == SIGNALS[signal.Signals(number)][1]
    assert result.err.startswith("stopped: ")
    assert result.err.endswith("the same command goes on from here\n")
    assert not list(tmp_path.rglob("*.pt"))
    assert call("runs_dir=cut").status == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_trains_a_signal_acts_at_once(
    call: Call, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sweep, "_resolve", lambda _: send(number)())
    result = call("")
    assert result.status == SIGNALS[signal.Signals(number)][1]
    assert result.err.startswith("stopped: ")


def test_a_signal_in_the_last_evaluation_ends_the_sweep_after_the_run(call: Call, tmp_path: Path) -> None:
    evaluate = Trainer.evaluate

    def signalled(self: Trainer, part: str) -> Any:
        if part == "test":
            send(signal.SIGTERM)()
        return evaluate(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", signalled)
        result = call("-m norm=none,weight_norm hydra/launcher=basic")
    assert (result.status, result.err) == (143, f"stopped: between two runs (SIGTERM){ENDING}")
    (record,) = records(tmp_path / "runs/adhoc").values()
    assert record["status"] == "finished"
    assert not list(tmp_path.rglob("*.pt"))


def test_a_limit_stops_the_run_in_progress_and_nothing_further_begins(
    call: Call, tmp_path: Path, steps: list[int]
) -> None:
    words = f"{SWEEP} hydra/launcher=stacked hydra.launcher.members=2 trainer.max_minutes=50"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stops, "STARTED", time.monotonic())
        when(patch, lambda t: t.config.norm.label == "weight_norm" and t.step == 1, late(patch))
        result = call(words)
        where, why = "mlp weight_norm sgd (2 runs), step 1 of 4", "(trainer.max_minutes=50)"
        so_far = "; 4 of 8 runs are done"
        assert (result.status, result.err) == (75, f"stopped: {where} {why}{so_far}{ENDING}")
        states = sorted(record["status"] for record in records(tmp_path / "runs/adhoc").values())
        assert states == ["finished"] * 4 + ["running"] * 2
        steps.clear()
        again = call(words)
        assert (again.status, steps) == (75, [])
        assert again.err == f"stopped: before mlp weight_norm sgd (2 runs) {why}{so_far}{ENDING}"
    assert call(f"{SWEEP} hydra/launcher=stacked").status == 0
    with pytest.MonkeyPatch.context() as patch:
        late(patch)()
        assert call(words).status == 0  # nothing is left to begin


def test_with_workers_too_a_limit_says_how_many_runs_are_done(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the rows of a table, which are trained one after the other, the first seed's before the next's."""
    rows = [{"name": norm, "norm": norm, "lrs": [0.1]} for norm in ("weight_norm", "none")]
    declare(tmp_path, monkeypatch, "rows", rows=rows, seeds=[0, 1], fixed={"model": "mlp"})
    words = "+experiment=rows hydra.launcher.members=1 trainer.max_minutes=50"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stops, "STARTED", time.monotonic())
        when(patch, lambda t: t.config.seed == 1 and t.step == 3, late(patch))
        result = call(words)
        line = "mlp weight_norm sgd lr=0.1 seed=1, step 3 of 4 (trainer.max_minutes=50); 2 of 4 runs are done"
        assert (result.status, result.err) == (75, f"stopped: {line}{ENDING}")
        result = call(f"{words} hydra.launcher.workers=2")
        assert result.status == 75
        assert result.err.startswith("stopped: before mlp ")
        assert result.err.endswith(f" (trainer.max_minutes=50); 2 of 4 runs are done{ENDING}")
    assert call(words).status == 0
    assert len(records(tmp_path / "runs/rows")) == 4


@pytest.mark.parametrize("words", ["norm=weight_norm_init model.noise=0.1 model.dropout=0.3", "-m seed=0,1"])
def test_a_script_loops_until_zero(call: Call, tmp_path: Path, words: str) -> None:
    """A command of three steps at a time comes to the numbers of one without a limit."""
    words += " trainer.batch_size=300"
    assert call(f"{words} runs_dir=whole").status == 0
    pieces = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stops, "STARTED", time.monotonic())
            taken: list[int] = []
            when(patch, lambda t, n=taken: n.append(1) or len(n) == 3, late(patch))  # type: ignore[misc,func-returns-value]
            status = call(f"{words} runs_dir=cut trainer.max_minutes=50").status
        pieces += 1
        if status == 0:
            break
        assert status == 75
    assert pieces > 1
    cut = outcome(tmp_path / "cut")
    for one in cut.values():
        assert one["record"]["config"]["trainer"].pop("max_minutes") == 50
    whole = outcome(tmp_path / "whole")
    for one in whole.values():
        assert one["record"]["config"]["trainer"].pop("max_minutes") is None
    assert cut == whole


@pytest.mark.slow
def test_stopped_processes_go_on_to_the_same_numbers(tmp_path: Path) -> None:
    words = [*SWEEP.split(), "hydra/launcher=stacked", "trainer.epochs=100", "trainer.checkpoint_every=3"]
    whole = start([*words, f"runs_dir={tmp_path / 'whole'}"])
    cut = [*words, f"runs_dir={tmp_path / 'cut'}"]

    def checkpoints() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("cut/adhoc/stacks/*.before.pt")}

    for number in SIGNALS:
        seen = checkpoints()
        process = start(cut)
        while checkpoints() == seen:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        name, status = SIGNALS[number]
        assert (process.returncode, err.count("\n")) == (status, 1)
        assert err.startswith("stopped: mlp ")
        assert err.endswith(f" ({name}){ENDING}")
    limited = start([*cut, "trainer.max_minutes=1e-6"])
    assert "stopped: before mlp " in limited.communicate(timeout=60)[1]
    assert limited.returncode == 75
    for process in (whole, start(cut)):
        assert process.communicate(timeout=200)[1] == ""
        assert process.returncode == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
