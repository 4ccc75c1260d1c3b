"""Records that several processes or experiments want: locks, and results that are taken over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record_cases import config_in, ended, interrupt

from wn.again import reuse
from wn.config import Config
from wn.records import Record, read_experiment

REPOSITORY = Path(__file__).parent.parent


# Locks


def test_a_run_is_claimed_once(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    one, other = Record.of(config), Record.of(config)
    assert one.claim()
    assert not other.claim()
    ended(config, claimed=one)
    one.release()
    assert other.claim()
    assert other.done  # read again under the lock
    other.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    code = (
        "import sys, time; from wn.records import Record; from wn.config import parse\n"
        "record = Record.of(parse({'runs_dir': sys.argv[1]}))\n"
        "print(record.claim(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        record = Record.of(config)
        assert not record.claim()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert record.claim()
    record.release()


# Several experiments


def reuse_in(config: Config) -> bool:
    return reuse([Record.of(config)]) == {config.run_id}


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_result_of_another_experiment_is_reused(tmp_path: Path, status: str) -> None:
    there = ended(config_in(tmp_path, experiment_name="one"), status)
    config = config_in(tmp_path, experiment_name="two")
    assert reuse_in(config)
    here = Record.of(config)
    assert here.status == status
    assert here.content == {**there.content, "experiment": "two"}
    assert (here.metrics, here.probes) == (there.metrics, there.probes)
    assert Record.read(there.folder).content["experiment"] == "one"
    assert here.claim()  # the lock was given back
    here.release()


def test_only_results_of_others_are_reused(tmp_path: Path) -> None:
    for name, status in (("one", "failed"), ("two", "running"), ("here", "finished")):
        ended(config_in(tmp_path, experiment_name=name), status)
    ended(config_in(tmp_path, experiment_name="three", seed=1))
    assert not reuse_in(config_in(tmp_path, experiment_name="here"))


def test_a_run_in_training_is_not_overwritten_by_an_adopted_one(tmp_path: Path) -> None:
    ended(config_in(tmp_path, experiment_name="one"))
    config = config_in(tmp_path, experiment_name="two")
    training = Record.of(config)
    assert training.claim()
    training.append([{"step": 0}], [])
    assert not reuse_in(config)
    assert training.metrics == [{"step": 0}]
    training.release()


def test_adoption_that_is_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ended(config_in(tmp_path, experiment_name="one"))
    config = config_in(tmp_path, experiment_name="two")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reuse_in(config)
    assert not Record.of(config).done
    assert reuse_in(config)
    assert Record.of(config).metrics == there.metrics


def test_an_experiment_s_records_come_in_order_and_alone(tmp_path: Path) -> None:
    configs = [config_in(tmp_path, seed=seed) for seed in range(4)]
    for config in configs:
        ended(config)
    Record.of(config_in(tmp_path, seed=9))  # nothing trained yet
    (tmp_path / "adhoc" / "stacks").mkdir()
    ended(config_in(tmp_path, experiment_name="other"))
    found = [record.content["run_id"] for record in read_experiment(tmp_path, "adhoc")]
    assert found == sorted(config.run_id for config in configs)
    assert list(read_experiment(tmp_path, "nope")) == []
