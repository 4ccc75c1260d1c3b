"""What a stopped run leaves behind, and how it goes on."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stop_cases import stop_at, when
from sweep_cases import outcome, tiny

from wn import records, run, tracking
from wn.config import Config
from wn.provenance import provenance
from wn.records import Record
from wn.stops import StopWatcher
from wn.sweep import train_sweep


def test_seconds_add_up_over_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of one second a step: as many as the steps, however they are cut."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(run, "time", clock)

    def tick() -> None:
        clock.now += 1

    when(monkeypatch, lambda _: True, tick)
    for at in (1, 3, 4):
        stop_at(at, [tiny(tmp_path)])
        clock.now += 1000  # between two pieces
    (record,) = train_sweep([tiny(tmp_path)])
    assert record.content["seconds"] == 6
    bests = []
    for one in train_sweep([tiny(tmp_path, seed=seed) for seed in (1, 2, 3)]):
        assert one.content["seconds"] == 2, "a member's share"
        first, *_, last = one.metrics
        assert one.content["initial"]["valid_loss"] == first["valid_loss"] != last["valid_loss"]
        assert one.content["steps"] == 6
        measured = {key: value for key, value in last.items() if key.startswith(("train", "valid"))}
        assert measured.keys() == {
            f"{part}_{name}" for part in ("train", "valid") for name in ("loss", "error")
        }
        assert measured.items() <= one.content["final"].items()
        errors = [row["valid_error"] for row in one.metrics]
        bests.append(errors.index(min(errors)))
        assert one.content["best"] == {"epoch": bests[-1], "valid_error": min(errors)}
    assert min(bests) < 3, "of one the best epoch is not the last"


def test_a_run_stopped_alone_goes_on_alone_in_a_wider_sweep(tmp_path: Path, steps: list[int]) -> None:
    train_sweep([tiny(tmp_path / "whole")])
    folder = tmp_path / "cut"
    stop_at(3, [tiny(folder)])
    steps.clear()
    train_sweep([tiny(folder, seed=seed) for seed in range(3)])
    assert steps == [1] * 3 + [2] * 6
    one = tiny(folder).run_id
    assert outcome(folder)[one] == outcome(tmp_path / "whole")[one]


def test_a_part_of_a_sweep_that_was_cut_short_leaves_the_others_where_they_are(
    tmp_path: Path, steps: list[int]
) -> None:
    """Four are stopped together, one of them is trained alone, then the four go on: it trains along."""

    def four(folder: Path) -> list[Config]:
        return [tiny(folder, seed=seed) for seed in range(4)]

    train_sweep(four(tmp_path / "whole"))
    cut = four(tmp_path / "cut")
    stop_at(4, cut)
    (alone,) = train_sweep(cut[1:2])
    kept = alone.content
    steps.clear()
    train_sweep(cut)
    assert steps == [4] * 2  # of the six
    found, whole = outcome(tmp_path / "cut"), outcome(tmp_path / "whole")
    for config in (cut[0], *cut[2:]):
        assert found[config.run_id] == whole[config.run_id]
    assert Record.of(cut[1]).content == kept
    assert not list(tmp_path.rglob("*.pt"))


def test_a_lost_record_costs_the_others_of_its_stack_nothing(tmp_path: Path, steps: list[int]) -> None:
    whole, cut = ([tiny(tmp_path / name, seed=seed) for seed in range(4)] for name in ("whole", "cut"))
    train_sweep(whole)
    stop_at(4, cut)
    shutil.rmtree(Record.of(cut[1]).folder)
    steps.clear()
    train_sweep(cut)
    assert steps == [4] * 2 + [1] * 6, "four go on to the end, of which the lost one trains once more, alone"
    found, same = outcome(tmp_path / "cut"), outcome(tmp_path / "whole")
    for config in (cut[0], *cut[2:]):
        assert found[config.run_id] == same[config.run_id]
    assert not list(tmp_path.rglob("*.pt"))


def test_two_that_were_cut_short_in_turns_both_go_on(tmp_path: Path, steps: list[int]) -> None:
    """A member of a stack that was cut short is stopped alone, too, and resumes what it did alone."""
    cut = [tiny(tmp_path, seed=seed) for seed in range(3)]
    stop_at(4, cut)
    stop_at(5, cut[:1])
    steps.clear()
    train_sweep(cut)
    assert sorted(steps) == [1, 3, 3]
    assert all(Record.of(config).done for config in cut)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_run_that_goes_on_with_other_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = provenance("a processor") | {"commit": "1" * 40, "dirty": False, "source": "first"}

    def by(**changes: Any) -> None:
        told = made | changes
        for module in (run, records):
            monkeypatch.setattr(module, "provenance", lambda device, told=told: told | {"device": device})

    by()
    stop_at(2, [tiny(tmp_path)])
    by(commit="2" * 40)  # the same code: nothing to tell
    stop_at(4, [tiny(tmp_path)])
    assert "other code" not in caplog.text
    by(commit="3" * 40, source="second", dirty=True)
    (record,) = train_sweep([tiny(tmp_path)])
    assert f"began with other code (commit {'1' * 12}, torch {made['packages']['torch']})" in caplog.text
    found = record.content["provenance"]
    assert (found["commit"], found["source"], found["dirty"]) == ("3" * 40, "second", True)
    assert [(one["commit"][0], one["source"]) for one in found["before"]] == [("1", "first"), ("2", "first")]
    assert "before" not in train_sweep([tiny(tmp_path, seed=1)])[0].content["provenance"]


def test_a_piece_of_other_code_is_told_after_a_return_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = provenance("a processor") | {"dirty": False}
    for at, code in ((2, "first"), (4, "second"), (None, "first")):
        told = made | {"commit": code, "source": code}
        for module in (run, records):
            monkeypatch.setattr(module, "provenance", lambda device, told=told: told | {"device": device})
        caplog.clear()
        if at is not None:
            stop_at(at, [tiny(tmp_path)])
    (record,) = train_sweep([tiny(tmp_path)])
    assert "began with other code" in caplog.text
    found = record.content["provenance"]
    assert found["source"] == "first"
    assert [one["source"] for one in found["before"]] == ["first", "second"]


def test_a_run_that_moved_names_both_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, name in ((1, "this"), (3, "this"), (4, "that")):
        monkeypatch.setattr(run, "device_name", lambda _, name=name: name)
        stop_at(step, [tiny(tmp_path)])
    (record,) = train_sweep([tiny(tmp_path)])
    assert record.content["provenance"]["device"] == "this, then that"


def test_the_live_copy_is_paused_rather_than_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Copy:
        def __init__(self, record: Record, _: Any) -> None:
            told.append(f"open at {len(record.metrics)}")

        def log(self, metrics: list[Any], probes: list[Any]) -> None: ...

        def pause(self) -> None:
            told.append("pause")

        def finish(self, record: Record) -> None:
            told.append(record.status)

    monkeypatch.setattr(tracking, "LiveMirror", Copy)
    stop_at(3, [tiny(tmp_path)])
    train_sweep([tiny(tmp_path)])
    assert told == ["open at 0", "pause", "open at 2", "finished"]  # rows of epochs 0 and 1


def test_beside_the_main_thread_the_clock_alone_is_watched() -> None:
    handler, seen = signal.getsignal(signal.SIGINT), []

    def watch() -> None:
        with StopWatcher(None) as watch:
            seen.append((watch.stop(""), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(None, handler)]


# Determinism


def test_deterministic_means_torch_s_own_mode_for_that_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    when(monkeypatch, lambda _: True, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    for wanted in (True, False):
        train_sweep([tiny(tmp_path / str(wanted), trainer={"deterministic": wanted})])
    assert seen == [True] * 6 + [False] * 6


@pytest.mark.gpu
@pytest.mark.parametrize("at", [1, 4, 5])
def test_on_a_gpu_a_stopped_stack_goes_on_to_the_same_numbers(tmp_path: Path, at: int) -> None:
    settings: dict[str, Any] = {"trainer": {"device": "cuda", "deterministic": True}}
    settings["model"] = {"widths": [64], "noise": 0.1, "dropout": 0.2}

    def three(folder: Path) -> list[Config]:
        return [tiny(folder, "batch_norm", lr, **settings) for lr in (0.1, 0.01, 1.0)]

    train_sweep(three(tmp_path / "whole"))
    stop_at(at, three(tmp_path / "cut"))
    train_sweep(three(tmp_path / "cut"))
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
