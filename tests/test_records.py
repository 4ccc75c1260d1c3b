"""The record on disk: identity, atomic writes, locks, what a reader sees and what it never shall."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wn import records
from wn.config import Config, UserError, parse
from wn.records import Record, adopt, read_experiment, read_rows, to_json, write_atomically

REPOSITORY = Path(__file__).parent.parent

ABSOLUTE_PATH = re.compile(r"(?<![\w/.~:<])/\w+")


def config_in(folder: Path, **changes: Any) -> Config:
    return parse({"runs_dir": str(folder), **changes})


def ended(config: Config, status: str = "finished", rows: int = 2) -> Record:
    """A record with a result, as a trainer leaves it."""
    record = Record.of(config)
    assert record.claim()
    record.begin(config, [config.run_id], "a processor")
    record.append([{"step": step, "loss": 1.0 / (1 + step)} for step in range(rows)], [{"step": 1, "g": 2.0}])
    record.save(status=status, final={"valid_loss": 0.5})
    record.release()
    return record


# Identity


def test_run_id_is_pinned() -> None:
    # A change here gives every run of every user another name: raise SCHEMA and mean it.
    assert Config().run_id == "b908fe6fae49"


def test_run_id_is_the_hash_of_what_decides_the_numbers_and_is_not_at_its_default() -> None:
    numbers = {
        "schema": 2,
        "model": {"name": "mlp", "widths": [7]},
        "norm": {"gain": "free", "statistics": "batch"},
        "trainer": {"epochs": 2},
        "seed": 3,
    }
    text = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
    del numbers["schema"]
    assert parse(numbers).run_id == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "where",
    [
        {"runs_dir": "/elsewhere"},
        {"experiment_name": "other"},
        {"data": {"root": "/data", "download": False}},
        {"trainer": {"device": "cuda:1", "deterministic": True, "max_minutes": 9.5}},
        {"trainer": {"progress": False, "checkpoint_every": 3, "probe_every": 7}},
        {"tracking": {"mode": "offline", "project": "p", "entity": "e"}},
    ],
)
def test_where_a_run_happens_is_no_part_of_its_identity(where: dict[str, Any]) -> None:
    assert parse(where).run_id == Config().run_id


@pytest.mark.parametrize(
    "what",
    [
        {"seed": 1},
        {"optim": {"lr": 0.02}},
        {"optim": {"name": "adam"}},
        {"optim": {"weight_decay": 1e-4}},
        {"norm": {"direction": "row", "gain": "free"}},
        {"norm": {"init": "data"}},
        {"norm": {"eps": 1e-5}},
        {"model": {"widths": [128]}},
        {"model": {"dropout": 0.5}},
        {"data": {"name": "mnist"}},
        {"data": {"valid_fraction": 0.1}},
        {"data": {"train_fraction": 0.1}},
        {"data": {"whiten": True}},
        {"trainer": {"epochs": 31}},
        {"trainer": {"batch_size": 50}},
        {"trainer": {"init_batch_size": 100}},
        {"trainer": {"precision": "bfloat16"}},
    ],
)
def test_what_decides_the_numbers_decides_the_identity(what: dict[str, Any]) -> None:
    assert parse(what).run_id != Config().run_id


def test_a_record_holds_all_of_its_run_s_identity(tmp_path: Path) -> None:
    config = config_in(tmp_path, seed=3, model={"widths": [7]}, norm={"gain": "free", "statistics": "batch"})
    content = json.loads((ended(config).folder / "record.json").read_text())
    assert parse(content["config"]).run_id == config.run_id == content["run_id"]


# Writing and reading


def test_a_reader_sees_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [b"a" * 10, b"b" * 300_000]
    write_atomically(path, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomically(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(500)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(contents)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_is_cut_short_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ended(config_in(tmp_path))
    before = (record.folder / "record.json").read_bytes()
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                record.save(status="failed")
        assert (record.folder / "record.json").read_bytes() == before
    assert [r.status for r in read_experiment(tmp_path, "adhoc")] == ["finished"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_numbers_that_are_none_become_null() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": (0.1 + 0.2, {"d": math.nan})})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, None, 1.5],
        "c": [0.30000000000000004, {"d": None}],
    }


def test_rows_that_a_kill_cut_short_are_left_out(tmp_path: Path) -> None:
    whole = [{"step": 0, "loss": 2.5}, {"step": 1, "loss": None}]
    text = "".join(to_json(row) + "\n" for row in whole)
    for end in range(len(text) + 1):
        (tmp_path / "metrics.jsonl").write_text(text[:end])
        assert read_rows(tmp_path / "metrics.jsonl") == whole[: text[:end].count("\n")]
    assert read_rows(tmp_path / "missing.jsonl") == []


def test_rewind_forgets_later_rows_and_half_ones(tmp_path: Path) -> None:
    record = ended(config_in(tmp_path), rows=4)
    for name in ("metrics", "probes"):
        with open(record.folder / f"{name}.jsonl", "a") as file:
            file.write('{"step": 9, "lo')
    record.rewind(2)
    assert [row["step"] for row in record.metrics] == [0, 1, 2]
    record.append([{"step": 3}], [])
    assert [row["step"] for row in record.metrics] == [0, 1, 2, 3]
    assert (record.folder / "probes.jsonl").read_text() == '{"step": 1, "g": 2.0}\n'
    record.rewind(-1)
    assert record.metrics == record.probes == []


def test_rewind_of_a_run_without_rows(tmp_path: Path) -> None:
    record = Record.of(config_in(tmp_path))
    record.rewind(-1)
    assert record.metrics == record.probes == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '"finished"', "\0\0\0"])
def test_an_unreadable_record_is_an_error_of_one_line(tmp_path: Path, content: str) -> None:
    record = ended(config_in(tmp_path))
    (record.folder / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record\.json: unreadable .*delete that folder") as error:
        Record.of(config_in(tmp_path))
    assert "\n" not in str(error.value)


def test_runs_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for folder in ("runs", "runs/deeper"):
        with pytest.raises(UserError, match=r"cannot be written to .*runs_dir="):
            Record.of(config_in(tmp_path / folder))


def test_runs_dir_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised here, not by the file system: root may write everywhere.
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    record = Record.of(config_in(tmp_path))
    monkeypatch.setattr(record._lock, "acquire", denied)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
        record.claim()
    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
        Record.of(config_in(tmp_path))


# What a record says


def test_a_record_says_what_it_was_and_not_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USER", "somebody")
    config = config_in(tmp_path, data={"root": "/home/somebody/data"})
    record = ended(config)
    content = json.loads((record.folder / "record.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    provenance = content["provenance"]
    assert provenance["commit"] == (head.stdout.strip() or None)
    assert provenance["dirty"] in ((True, False) if head.stdout else (None,))
    assert provenance["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance["packages"].keys() >= {"torch", "numpy", "hydra-core"}
    assert provenance["device"] == "a processor"
    assert content["engine"] == {"stack_size": 1, "compiled": False}
    for path in record.folder.iterdir():
        text = path.read_text()
        for private in (socket.gethostname(), "somebody", str(tmp_path), str(REPOSITORY)):
            assert private not in text
        assert not ABSOLUTE_PATH.search(text)


def test_a_new_start_forgets_an_earlier_failure(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    Record.of(config).save(status="failed", error="boom", stack=["old"], diverged_at={"step": 3})
    assert "boom" not in json.dumps(ended(config).content)
    assert "diverged_at" not in Record.of(config).content


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", none)
    assert records.git_state() == {"commit": None, "dirty": None}


# Locks


def test_a_run_is_claimed_once(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    one, other = Record.of(config), Record.of(config)
    assert one.claim()
    assert not other.claim()
    one.save(status="finished")
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


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_result_of_another_experiment_is_adopted(tmp_path: Path, status: str) -> None:
    there = ended(config_in(tmp_path, experiment_name="one"), status)
    config = config_in(tmp_path, experiment_name="two")
    assert adopt(config)
    here = Record.of(config)
    assert here.status == status
    assert here.content == {**there.content, "experiment": "two"}
    assert (here.metrics, here.probes) == (there.metrics, there.probes)
    assert Record.read(there.folder).content["experiment"] == "one"
    assert here.claim()  # the lock was given back
    here.release()


def test_only_results_of_others_are_adopted(tmp_path: Path) -> None:
    for name, status in (("one", "failed"), ("two", "running"), ("here", "finished")):
        ended(config_in(tmp_path, experiment_name=name), status)
    ended(config_in(tmp_path, experiment_name="three", seed=1))
    assert not adopt(config_in(tmp_path, experiment_name="here"))


def test_a_run_in_training_is_not_overwritten_by_an_adopted_one(tmp_path: Path) -> None:
    ended(config_in(tmp_path, experiment_name="one"))
    config = config_in(tmp_path, experiment_name="two")
    training = Record.of(config)
    assert training.claim()
    training.append([{"step": 0}], [])
    assert not adopt(config)
    assert training.metrics == [{"step": 0}]
    training.release()


def test_adoption_that_is_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ended(config_in(tmp_path, experiment_name="one"))
    config = config_in(tmp_path, experiment_name="two")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            adopt(config)
    assert not Record.of(config).done
    assert adopt(config)
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
