"""What is measured, in which order and by whom; what is complete is not measured again."""

from __future__ import annotations

import functools
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from wn.claims import __main__ as command
from wn.claims import criteria, measuring
from wn.claims.measuring import Part, Row
from wn.claims.rows import read
from wn.claims.training import data_of
from wn.config import UserError
from wn.config.compose import compose
from wn.run import RunFailed
from wn.stops import Preempted, StopWatcher, termination


def test_parts_of_a_claim_have_names_of_their_own_that_files_can_have():
    """Two parts of one name would be one file, and the second never measured."""
    assert len(measuring.families()) > 10
    for name, measurement in measuring.MEASUREMENTS.items():
        parts = [part.name for part in measurement()]
        assert len(set(parts)) == len(parts) > 0, name
        assert all(re.fullmatch(r"[\w.-]+", part) for part in parts), parts


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Measurements of two parts of a claim, in an empty folder, and which of them were called."""
    monkeypatch.chdir(tmp_path)
    calls: list[str] = []

    def part(name: str) -> Part:
        row: Row = {"condition": "mlp, SGD", "quantity": "q", "seed": 0, "value": 1.0}
        return Part(name, lambda: calls.append(name) or [row])  # type: ignore[func-returns-value]

    monkeypatch.setattr(measuring, "MEASUREMENTS", {"B3": lambda: iter([part("one"), part("two")])})
    made = {"commit": "0" * 40, "dirty": False, "device": "a CPU", "packages": {"torch": "2"}}
    monkeypatch.setattr(measuring, "_made", lambda: made)
    claim = SimpleNamespace(conditions={"mlp, SGD": ""})
    monkeypatch.setattr(criteria, "load", lambda name: claim)
    monkeypatch.setattr(criteria, "digest_of", lambda name: "0123456789ab")
    return calls


def test_what_is_complete_is_not_measured_again(measured: list[str], tmp_path: Path):
    class Late(StopWatcher):
        def stop(self, where: str) -> Preempted | None:
            return Preempted("late", where, 75) if measured else None

    with pytest.raises(Preempted, match="before B3, two"):
        measuring.measure("B3", Late(None))
    measuring.measure("B3", StopWatcher(None))
    measuring.measure("B3", StopWatcher(None))
    assert measured == ["one", "two"]
    assert read(tmp_path / "runs" / "claims" / "B3" / "two.json") is not None


def test_a_row_of_no_condition_is_named_and_nothing_is_written(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its number would be in no verdict, and the part would count as measured."""
    row: Row = {"condition": "mlp, SDG", "quantity": "q", "seed": 0, "value": 1.0}
    monkeypatch.setattr(measuring, "MEASUREMENTS", {"B3": lambda: iter([Part("one", lambda: [row])])})
    with pytest.raises(UserError, match=r"^B3: mlp, SDG: no condition of experiments/claims/B3.yaml$"):
        measuring.measure("B3", StopWatcher(None))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_signal_stops_amid_a_part(measured: list[str], monkeypatch: pytest.MonkeyPatch):
    """At once, where nothing trains; what trains in a part has a watcher of its own, which saves it first."""

    def killed() -> list[Row]:
        with StopWatcher(None) as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.stop("amid a training") is not None
        raise AssertionError("training went on")

    monkeypatch.setattr(measuring, "MEASUREMENTS", {"B3": lambda: iter([Part("one", killed)])})
    monkeypatch.setattr(measuring, "families", dict)
    with termination(), pytest.raises(Preempted, match="SIGTERM"):
        measuring.measure_family(None, ["B3"])
    assert read(Path("runs/claims/B3/one.json")) is None


@pytest.mark.parametrize(
    "why", [UserError("data.root=data: no complete CIFAR10 there"), RunFailed("run a1 failed: out of memory")]
)
def test_what_cannot_be_measured_here_is_left_out_and_the_others_are_measured(
    why: Exception, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails() -> list[Row]:
        raise why

    parts = {"B2": [Part("one", fails)], "B3": list(measuring.MEASUREMENTS["B3"]())}
    known = {name: functools.partial(iter, parts[name]) for name in parts}
    for module in (measuring, command):
        monkeypatch.setattr(module, "MEASUREMENTS", known)
        monkeypatch.setattr(module, "families", lambda: {"growth": ["B2", "B3"], "cost": []})
    assert command.main(["growth", "--workers", "1"]) == 2
    assert measured == ["one", "two"]
    assert f"B2 is left out: {why}" in capsys.readouterr().err
    assert command.main(["B3", "--workers", "1"]) == 0


def test_another_criterion_voids_what_was_measured(measured: list[str], monkeypatch: pytest.MonkeyPatch):
    measuring.measure("B3", StopWatcher(None))
    monkeypatch.setattr(criteria, "digest_of", lambda name: "another")
    measuring.measure("B3", StopWatcher(None))
    assert measured == ["one", "two", "one", "two"]


def test_rows_of_uncommitted_code_are_measured_again(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    changed = {**measuring._made(), "dirty": True}
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_made", lambda: changed)
        measuring.measure("B3", StopWatcher(None))
    uncommitted = ", which do not count: the code has uncommitted changes"
    assert capsys.readouterr().out.splitlines()[0] == f"B3 one: 1 rows in 0 s{uncommitted}"
    measuring.measure("B3", StopWatcher(None))
    measuring.measure("B3", StopWatcher(None))
    assert measured == ["one", "two", "one", "two"]
    assert "uncommitted" not in capsys.readouterr().out


def test_a_family_is_measured_by_one_process_and_steps_are_timed_alone():
    names = command.chosen([], True)
    together, timed = command.groups(names)
    assert sorted(name for group in together + timed for name in group) == sorted(names)
    assert [sorted(group) for group in timed] == [["G5", "H1", "H2"]]
    assert ["B5", "B6a", "B6b", "B7"] in together
    assert command.groups(["B5", "A5", "B7"]) == ([["B5", "B7"], ["A5"]], [])


def test_an_unknown_claim_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert command.main(["Z9"]) == 2
    assert "Z9: no claim that is measured" in capsys.readouterr().err


def test_claims_have_their_data_on_the_cpu_whatever_a_run_says():
    assert data_of(compose({"data": "digits", "trainer.device": "cuda:7"})).train.x.device.type == "cpu"
