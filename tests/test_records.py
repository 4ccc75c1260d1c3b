"""The record on disk: atomic writes, what a reader sees and what it never shall."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from record_cases import config_in, ended, interrupt

from wn.config import UserError
from wn.provenance import git_state
from wn.records import Damaged, Record, read_experiment, read_rows, to_json, write_atomically

REPOSITORY = Path(__file__).parent.parent

ABSOLUTE_PATH = re.compile(r"(?<![\w/.~:<])/\w+")


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
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            record.save(status="failed")
    assert (record.folder / "record.json").read_bytes() == before
    assert [r.status for r in read_experiment(tmp_path, "adhoc")] == ["finished"]


def test_numbers_that_are_none_become_null() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": (0.1 + 0.2, {"d": math.nan})})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, None, 1.5],
        "c": [0.30000000000000004, {"d": None}],
    }


def test_rows_that_a_kill_cut_short_are_left_out(tmp_path: Path) -> None:
    whole = [{"step": 0, "loss": 2.5}, {"step": 1, "loss": None}]
    text = "".join(to_json(row) + "\n" for row in whole).encode()
    for end in range(len(text) + 1):
        (tmp_path / "metrics.jsonl").write_bytes(text[:end])
        assert read_rows(tmp_path / "metrics.jsonl") == whole[: text[:end].count(b"\n")]
    assert read_rows(tmp_path / "missing.jsonl") == []


def test_rewind_forgets_later_rows_and_half_ones(tmp_path: Path) -> None:
    record = ended(config_in(tmp_path), rows=3)
    sizes = record.sizes()
    record.append([{"step": 3}, {"step": 3}], [])  # twice, as a copied folder may have them
    for name in ("metrics", "probes"):
        with open(record.folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 9, "lo')
    record.rewind(sizes)
    assert [row["step"] for row in record.metrics] == [0, 1, 2]
    record.append([{"step": 3}], [])
    assert [row["step"] for row in record.metrics] == [0, 1, 2, 3]
    assert (record.folder / "probes.jsonl").read_bytes() == b'{"step":1,"g":2.0}\n'
    with pytest.raises(ValueError, match=r"^rows of run \w+ are missing$"):
        record.rewind([1000, 0])
    record.rewind([0, 0])
    assert record.metrics == record.probes == []


def test_rewind_of_a_run_without_rows(tmp_path: Path) -> None:
    record = Record.of(config_in(tmp_path))
    record.rewind([0, 0])
    assert record.metrics == record.probes == []


# Damage


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without(key: str, **changes: Any) -> Callable[[Path], object]:
    """A record that lacks a key, or has another value there."""

    def change(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        del content[key]
        path.write_text(json.dumps(content | changes), encoding="utf-8")

    return change


def joined(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"", 1))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "empty": ("record.json", lambda path: path.write_text("")),
    "cut": ("record.json", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    "zeros": ("record.json", lambda path: path.write_bytes(bytes(100))),
    "a list": ("record.json", lambda path: path.write_text("[]")),
    "a word": ("record.json", lambda path: path.write_text('"finished"')),
    "no status": ("record.json", without("status")),
    "no config": ("record.json", without("config")),
    "no result": ("record.json", without("final")),
    "a number for a name": ("record.json", without("run_id", run_id=7)),
    "an unknown status": ("record.json", without("status", status="done")),
    "not UTF-8": ("record.json", lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"\xff"))),
    "a folder": ("record.json", make_folder),
    "zeros in a row": ("metrics.jsonl", lambda path: path.write_bytes(bytes(5) + path.read_bytes())),
    "joined rows": ("metrics.jsonl", joined),
    "rows not UTF-8": ("probes.jsonl", lambda path: path.write_bytes(b'{"step":0,"layer":"\xff"}\n')),
    "no row": ("probes.jsonl", lambda path: path.write_bytes(b"[1]\n")),
    "a folder of rows": ("metrics.jsonl", make_folder),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_named_set_aside_and_its_run_trained_again(
    tmp_path: Path, name: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path)
    record, other = ended(config), ended(config_in(tmp_path, seed=1))
    damage(record.folder / name)
    with pytest.raises(Damaged, match=rf"{name}: damaged \(.*\)$") as error:
        Record.read(record.folder)
    assert "\n" not in str(error.value)
    assert [r.content["run_id"] for r in read_experiment(tmp_path, "adhoc")] == [other.content["run_id"]]
    found = Record.of(config)
    assert (found.status, found.done) == ("new", False)
    assert [str(error.value) in r.getMessage() for r in caplog.records] == [True, True]
    assert not list(tmp_path.rglob("*.damaged"))  # who reads changes nothing
    for times in (1, 2):
        before = sorted(path.name for path in record.folder.iterdir() if path.name != "lock")
        assert found.claim()
        found.release()
        left = {path.name for path in record.folder.iterdir()}
        assert left >= {f"{name}.damaged"}
        assert all(".damaged" in other for other in left - {"lock"})
        assert len(left) == len(before) + 1
        ended(config)
        if times == 1:
            damage(record.folder / name)
            found = Record.of(config)
    assert Record.of(config).done


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
    for where, name in ((filelock.FileLock, "acquire"), (Path, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, denied)
            with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
                record.claim()


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
    ended(config, "failed").save(error="boom", stack=["old"], diverged_at={"step": 3})
    assert "boom" not in json.dumps(ended(config).content)
    assert "diverged_at" not in Record.of(config).content


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", none)
    assert git_state() == {"commit": None, "dirty": None}


def test_the_commit_is_this_project_s_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source archive unpacked inside another repository, or GIT_DIR, must not lend it that one's commit."""
    here = git_state()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "of another project")
    inside = tmp_path / "unpacked"
    inside.mkdir()
    assert git_state(inside) == {"commit": None, "dirty": None}
    found = git_state(tmp_path)
    assert (len(str(found["commit"])), found["dirty"]) == (40, False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_state() == here
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert git_state() == here
