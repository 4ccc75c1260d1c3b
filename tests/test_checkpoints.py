"""Checkpoints on disk: two are kept, and a damaged one costs no more than the way from the one before."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stop_cases import throw, when
from sweep_cases import Killed, outcome, stack_of_three, tiny

from wn.checkpoints import Checkpoints
from wn.config import Config, UserError
from wn.sweep import train_sweep
from wn.trainer import Trainer

LONGER = {"trainer": {"epochs": 6, "checkpoint_every": 1}}
"""Twelve steps, with a checkpoint after every second one."""


def runs(folder: Path) -> list[Config]:
    """A stack whose members diverge after the first and the third epoch, but for one."""
    return stack_of_three(folder, **LONGER)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an uninterrupted stack."""
    folder = tmp_path_factory.mktemp("whole")
    train_sweep(runs(folder))
    return outcome(folder)


def cut(folder: Path, configs: list[Config], after: int = 7) -> tuple[Path, Path]:
    """Train until a kill in the step after ``after`` of them: the newest checkpoint, and the one before."""
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda t: t.step > after, throw(Killed))
        with pytest.raises(Killed):
            train_sweep(configs)
    before, newest = sorted(folder.rglob("*.pt"))
    assert (read(before)["trainer"]["step"], read(newest)["trainer"]["step"]) == (after - 3, after - 1)
    return newest, before


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)  # the checksum at its end is nothing to torch


def sign(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def signed(path: Path, change: Callable[[Any], object]) -> None:
    """Change what a checkpoint holds, and give it the right checksum."""
    content, file = read(path), io.BytesIO()
    change(content)
    torch.save(content, file)
    path.write_bytes(sign(file.getvalue()))


def flip(path: Path, place: float) -> None:
    whole = bytearray(path.read_bytes())
    whole[int(place * (len(whole) - 1))] ^= 0x10
    path.write_bytes(whole)


def grow(content: Any) -> None:
    params = content["trainer"]["params"]
    params.update({name: torch.cat([p, p], dim=-1) for name, p in params.items()})


def rename(content: Any) -> None:
    content["took"] = content.pop("seconds")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "first byte": lambda path: flip(path, 0),
    "amid": lambda path: flip(path, 0.4),
    "last byte": lambda path: flip(path, 1),
    "of the time before checksums": lambda path: torch.save(read(path), path),
    "of other runs": lambda path: signed(path, lambda content: content["runs"].reverse()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(
    tmp_path: Path,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
    steps: list[int],
    expected: dict[str, Any],
) -> None:
    folder = tmp_path / "cut"
    newest, _ = cut(folder, runs(folder))
    damage(newest)
    steps.clear()
    train_sweep(runs(folder))
    assert steps == [2, 2, *[1] * 6]  # from the fifth of twelve, before the second member diverged
    (said,) = [r.getMessage() for r in caplog.records if "damaged" in r.message]
    assert str(newest) in said
    assert said.endswith("; going on from the one before")
    assert outcome(folder) == expected
    assert not list(folder.rglob("*.pt*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: signed(path, grow), "LookupError: it is of another model or optimiser"),
        (lambda path: signed(path, rename), "KeyError: 'seconds'"),
        (lambda path: signed(path, lambda content: content["trainer"].clear()), "KeyError: 'params'"),
        (lambda path: path.write_bytes(sign(b"text")), "IndexError: pop from empty list"),
    ],
)
def test_a_whole_checkpoint_that_the_code_cannot_take_is_kept_for_the_code_that_can(
    tmp_path: Path,
    change: Callable[[Path], object],
    said: str,
    caplog: pytest.LogCaptureFixture,
    steps: list[int],
    expected: dict[str, Any],
) -> None:
    folder = tmp_path / "cut"
    newest, before = cut(folder, runs(folder))
    written = newest.read_bytes()
    change(newest)  # as if the code had changed in between
    with pytest.raises(UserError, match=rf"\.pt: written by other code \({said}.*; go on with that code, or"):
        train_sweep(runs(folder))
    assert "damaged" not in caplog.text
    assert newest.exists()
    assert before.exists()
    newest.write_bytes(written)
    steps.clear()
    train_sweep(runs(folder))
    assert len(steps) == 6  # of twelve
    assert outcome(folder) == expected


def test_where_both_are_damaged_training_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: list[int], expected: dict[str, Any]
) -> None:
    folder = tmp_path / "cut"
    for path in cut(folder, runs(folder)):
        flip(path, 0.5)
    steps.clear()
    train_sweep(runs(folder))
    assert len(steps) == 12
    said = [r.getMessage() for r in caplog.records if "damaged" in r.message]
    assert [line.partition("; ")[2] for line in said] == [
        "going on from the one before",
        "its runs start anew",
    ]
    assert outcome(folder) == expected


def test_after_damage_two_good_ones_gather_again(tmp_path: Path, expected: dict[str, Any]) -> None:
    """The damaged one must not become the one before."""
    folder = tmp_path / "cut"
    newest, _ = cut(folder, runs(folder))
    flip(newest, 0.5)
    newest, _ = cut(folder, runs(folder), after=7)
    flip(newest, 0.5)
    train_sweep(runs(folder))
    assert outcome(folder) == expected


def test_a_kill_between_the_two_files_leaves_the_one_before(
    tmp_path: Path, steps: list[int], expected: dict[str, Any]
) -> None:
    folder = tmp_path / "cut"
    newest, _ = cut(folder, runs(folder))
    newest.unlink()
    steps.clear()
    train_sweep(runs(folder))
    assert len(steps) == 8
    assert outcome(folder) == expected


class _Trap:
    """What a pickle could do to whoever reads it."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.bait),)


def test_a_checkpoint_runs_no_code(tmp_path: Path, expected: dict[str, Any]) -> None:
    """However right its checksum is."""
    folder = tmp_path / "cut"
    paths = cut(folder, runs(folder))
    for path in paths:
        signed(path, lambda content: content.update(seconds=_Trap(tmp_path / "bait")))
    names = " and ".join(path.name for path in paths)
    with pytest.raises(
        UserError, match=rf"written by other code \(UnpicklingError: .* anew: delete {names}$"
    ):
        train_sweep(runs(folder))
    assert not (tmp_path / "bait").exists()
    for path in paths:
        path.unlink()
    train_sweep(runs(folder))
    assert outcome(folder) == expected


def test_a_checkpoint_without_an_ended_run_whose_record_is_lost_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected: dict[str, Any]
) -> None:
    folder = tmp_path / "cut"
    cut(folder, runs(folder), after=11)
    for path in folder.rglob("record.json"):
        path.unlink()
    train_sweep(runs(folder))
    assert "had ended when it was written" in caplog.text
    assert outcome(folder) == expected


def test_a_lack_of_memory_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cut"
    cut(folder, runs(folder))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "restore", full)
        assert {record.status for record in train_sweep(runs(folder)) if not record.done} == {"failed"}
    assert len(list(folder.rglob("*.pt"))) == 2


def test_a_lack_of_memory_after_a_checkpoint_splits_no_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    configs = [tiny(tmp_path / "cut", seed=seed) for seed in range(3)]
    with monkeypatch.context() as patch:
        when(patch, lambda t: t.step == t.total - 1, throw(torch.OutOfMemoryError, "of the device"))
        for _ in range(2):
            assert {record.status for record in train_sweep(configs)} == {"failed"}
            assert list(tmp_path.rglob("*.pt"))
    steps.clear()
    train_sweep(configs)
    assert len(steps) < 6
    train_sweep([tiny(tmp_path / "whole", seed=seed) for seed in range(3)])
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_folders_copied_to_another_machine_go_on_there(
    tmp_path: Path, steps: list[int], expected: dict[str, Any]
) -> None:
    cut(tmp_path / "here", runs(tmp_path / "here"))
    train_sweep([tiny(tmp_path / "there", seed=9)])
    shutil.copytree(tmp_path / "here", tmp_path / "there", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "here")
    steps.clear()
    train_sweep(runs(tmp_path / "there"))
    assert len(steps) == 6
    found = outcome(tmp_path / "there")
    assert found.pop(tiny(tmp_path, seed=9).run_id)["record"]["status"] == "finished"
    assert found == expected


def test_the_two_newest_are_kept_and_nothing_after_the_end(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "stacks", ["a", "b"])
    other = Checkpoints(tmp_path / "stacks", ["a"])
    other.save({"number": 7})
    found: list[Any] = []
    kept.restore(found.append)
    assert not found
    for number in range(3):
        kept.save({"number": number})
        kept.restore(found.append)
    assert found == [{"runs": ["a", "b"], "number": number} for number in range(3)]
    assert read(kept.before)["number"] == 1
    assert len(list(tmp_path.rglob("*"))) == 4  # the folder, two files, and the other's
    kept.newest.with_name(f".{kept.newest.name}.123").write_bytes(b"of a process killed as it wrote")
    kept.remove()
    assert [path.name for path in tmp_path.rglob("*.pt*")] == ["a.pt"]
