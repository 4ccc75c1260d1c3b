"""The command line: everyday commands, failures, interrupts."""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from stop_cases import throw, when
from sweep_cases import Killed, outcome
from train_cases import SWEEP, Call, Result, records, start

from wn.config import parse

# Everyday commands


def test_one_run(call: Call, tmp_path: Path) -> None:
    first = call("norm=weight_norm seed=3")
    assert (first.status, first.err) == (0, "")
    counted, ended = first.out.splitlines()
    assert counted == "1 run: 0 done before, 1 to train"
    assert re.match("mlp weight_norm sgd lr=0.1 seed=3: finished in .* s, validation error", ended)
    (record,) = records(tmp_path / "runs/adhoc").values()
    assert record["stack"] == [record["run_id"]]
    assert record["engine"]["stack_size"] == 1
    config = record["config"]
    assert (config["norm"]["direction"], config["seed"], config["trainer"]["epochs"]) == ("row", 3, 2)
    assert parse(config).run_id == record["run_id"]
    second = call("norm=weight_norm seed=3")
    assert (second.status, second.err) == (0, "")
    counted, known = second.out.splitlines()
    assert counted == "1 run: 1 done before, 0 to train"
    assert known.startswith("mlp weight_norm sgd lr=0.1 seed=3: finished, validation error")
    assert known.endswith(f"record runs/adhoc/{record['run_id']}")


def test_a_sweep(call: Call, tmp_path: Path) -> None:
    first = call(SWEEP)
    assert (first.status, first.err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"lock", "record.json", "metrics.jsonl", "probes.jsonl"}
    found = records(tmp_path / "runs/adhoc")
    cells = {(r["norm"], r["config"]["optim"]["lr"], r["config"]["seed"]): r for r in found.values()}
    assert cells.keys() == set(itertools.product(("none", "weight_norm"), (1e-3, 1e-2), (0, 1)))
    for (norm, _, _), record in cells.items():
        assert record["status"] == "finished"
        assert record["engine"]["stack_size"] == len(record["stack"]) == 4
        assert all(found[member]["norm"] == norm for member in record["stack"])
    assert call(SWEEP) == Result(0, "8 runs: 8 done before, 0 to train\n", "")


def test_a_run_is_the_same_under_hydra_s_basic_launcher(call: Call, tmp_path: Path) -> None:
    words = "-m norm=none,weight_norm seed=0,1"
    assert call(f"{words} runs_dir=stacked").status == 0
    assert call(f"{words} runs_dir=basic hydra/launcher=basic").status == 0
    basic, stacked = outcome(tmp_path / "basic"), outcome(tmp_path / "stacked")
    assert basic.keys() == stacked.keys()
    for run_id, one in basic.items():
        assert one["record"]["engine"]["stack_size"] == 1
        final = one["record"]["final"]
        assert stacked[run_id]["record"]["final"] == pytest.approx(final, rel=1e-4)


def test_a_sweep_takes_up_what_single_runs_have_done(call: Call) -> None:
    assert call("norm=none optim.lr=1e-3 seed=1").status == 0
    result = call(f"{SWEEP} hydra.launcher.members=2")
    assert result.out.startswith("8 runs: 1 done before, 7 to train\n")
    assert call("norm=weight_norm optim.lr=0.01").out.startswith("1 run: 1 done before, 0 to train\n")


@pytest.mark.parametrize("switch", ["--help", "--cfg job"])
def test_hydra_s_own_switches_train_nothing(call: Call, tmp_path: Path, switch: str) -> None:
    result = call(switch)
    assert (result.status, result.err) == (0, "")
    assert not list(tmp_path.iterdir())


# Failures and interrupts


def break_at(patch: pytest.MonkeyPatch, norm: str, kind: type[BaseException], *words: str) -> None:
    when(patch, lambda t: t.config.norm.label == norm, throw(kind, *words))


@pytest.mark.parametrize("launcher", [pytest.param("basic", marks=pytest.mark.slow), "stacked"])
def test_a_failed_run_does_not_stop_the_sweep(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    words = f"-m norm=none,weight_norm seed=0,1 hydra/launcher={launcher}"
    with monkeypatch.context() as patch:
        break_at(patch, "none", RuntimeError, f"out of {tmp_path}/memory")
        result = call(words)
    assert result.status == 1
    assert "Traceback" not in result.err
    assert re.search(
        r"^error: run \w+ failed: RuntimeError: out of memory .*record\.json\)$", result.err, re.M
    )
    found = records(tmp_path / "runs/adhoc").values()
    assert Counter((r["norm"], r["status"]) for r in found) == {
        ("none", "failed"): 2,
        ("weight_norm", "finished"): 2,
    }
    for record in found:
        if record["status"] == "failed":
            assert "in thrown: raise kind(*words)" in record["error"]
            assert str(tmp_path) not in record["error"]
    retried = call(words)
    assert (retried.status, retried.err) == (0, "")
    after = records(tmp_path / "runs/adhoc").values()
    assert [record["status"] for record in after] == ["finished"] * 4
    assert not any("error" in record for record in after)


def test_a_failed_run_alone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_at(patch, "none", ZeroDivisionError, "by zero")
        result = call("norm=none")
    assert result.status == 1
    assert "failed: ZeroDivisionError: by zero" in result.err
    assert call("norm=none").status == 0


@pytest.mark.parametrize("launcher", [pytest.param("basic", marks=pytest.mark.slow), "stacked"])
def test_an_interrupt_can_be_gone_on_from(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    words = f"-m norm=none,weight_norm seed=0,1 hydra/launcher={launcher}"
    with monkeypatch.context() as patch:
        break_at(patch, "weight_norm", KeyboardInterrupt)
        result = call(words)
    assert (result.status, result.err) == (130, "stopped: the same command goes on from here\n")
    assert call(words).status == 0
    found = records(tmp_path / "runs/adhoc").values()
    assert [record["status"] for record in found] == ["finished"] * 4


@pytest.mark.parametrize("words", ["norm=weight_norm", SWEEP])
def test_a_killed_command_goes_on_to_the_same_numbers(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    words += " trainer.epochs=6 trainer.checkpoint_every=2"
    assert call(f"{words} runs_dir=whole").status == 0
    with monkeypatch.context() as patch:
        when(patch, lambda t: t.step == 9 and t.config.norm.label == "weight_norm", throw(Killed))
        with pytest.raises(Killed):
            call(f"{words} runs_dir=cut")
    assert call(f"{words} runs_dir=cut").status == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


# As a process


def test_a_mistake_as_a_process(tmp_path: Path) -> None:
    """Nothing but the line comes from the interpreter, from libraries or from Hydra's own printing."""
    process = start(["-m", "norm=none,weight_nrm", "seed=0,1", f"runs_dir={tmp_path}"], report=True)
    out, err = process.communicate(timeout=120)
    line = "error: norm=weight_nrm: no such preset; did you mean 'weight_norm'?\n"
    assert (process.returncode, out, err) == (2, "", line)


@pytest.mark.slow
def test_other_endings_as_processes(tmp_path: Path) -> None:
    traceback = start(["optim.lr=0"], HYDRA_FULL_ERROR="1")
    single = start(["norm=none", f"runs_dir={tmp_path}"])
    _, err = traceback.communicate(timeout=120)
    assert traceback.returncode != 0
    assert "Traceback" in err
    assert "UserError: optim.lr=0" in err
    out, err = single.communicate(timeout=120)
    assert (single.returncode, err) == (0, "")
    assert out.startswith("1 run: 0 done before, 1 to train\nmlp none sgd lr=0.1 seed=0: finished in ")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.02, 0.3])
def test_a_killed_process_goes_on_to_the_same_numbers(tmp_path: Path, after: float) -> None:
    words = [*SWEEP.split(), "trainer.epochs=200", "trainer.checkpoint_every=2"]
    whole = start([*words, f"runs_dir={tmp_path / 'whole'}"])
    killed = start([*words, f"runs_dir={tmp_path / 'cut'}"])
    while not list(tmp_path.glob("cut/adhoc/stacks/*.pt")):
        assert killed.poll() is None
        time.sleep(0.001)
    time.sleep(after)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    again = start([*words, f"runs_dir={tmp_path / 'cut'}"])
    for process in (whole, again):
        assert process.communicate(timeout=200)[1] == ""
        assert process.returncode == 0
    assert len(outcome(tmp_path / "cut")) == 8
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
