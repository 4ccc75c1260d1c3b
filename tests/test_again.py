"""trainer.force: runs are trained again, and whenever that dies, nothing that was trained is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stop_cases import throw, when
from sweep_cases import Killed, outcome, tiny, train_until
from train_cases import Call, records

from wn import again, provenance, trained
from wn.config import Config
from wn.records import Record
from wn.sweep import train_sweep

OLD = {"old": True}
"""A mark in the record that was there before."""


def pair(folder: Path, force: bool = False) -> list[Config]:
    trainer = {"save": True, "epochs": 2, "checkpoint_every": 1, "force": force}
    return [tiny(folder, "weight_norm_init", seed=seed, trainer=trainer) for seed in (0, 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that are done and marked as old."""
    folder = tmp_path_factory.mktemp("finished")
    for record in train_sweep(pair(folder)):
        record.save(**OLD)
    return folder


def whole(folder: Path) -> dict[str, Any]:
    """A record's content and rows, and whether its model is there."""
    record = Record.read(folder)
    assert (record.metrics, record.probes) != ([], [])
    assert evaluated(folder) == record.content["final"]["test_loss"]
    return record.content


def evaluated(folder: Path) -> float:
    from wn.evaluate import evaluate

    return evaluate(trained.load(folder))["test_loss"] if (folder / trained.FILE).exists() else float("nan")


def test_forced_runs_that_were_never_trained_name_no_old_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(record.done for record in train_sweep(pair(tmp_path, force=True)))
    assert "old records" not in capsys.readouterr().out
    assert not (tmp_path / "adhoc/before").exists()


def test_a_forced_sweep_trains_again_and_keeps_the_old_records(
    finished: Path, tmp_path: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    train_sweep(pair(tmp_path))
    assert not steps
    capsys.readouterr()
    found = train_sweep(pair(tmp_path, force=True))
    assert steps == [2] * 4
    told = capsys.readouterr().out
    assert told.endswith(f"trained again; the old records are in {tmp_path}/adhoc/before\n")
    ids = [config.run_id for config in pair(tmp_path)]
    assert [record.folder for record in found] == [tmp_path / "adhoc" / run_id for run_id in ids]
    for record in found:
        before = json.loads((tmp_path / "adhoc/before" / record.folder.name / "record.json").read_text())
        assert before["old"]
        assert "old" not in record.content
        assert "force" not in record.content["config"]["trainer"]
        assert before["final"] == record.content["final"]
        assert trained.load(record.folder).record.content == record.content
    assert not any((tmp_path / "adhoc/again").glob("*/record.json"))
    assert {k: v["metrics"] for k, v in outcome(tmp_path).items()} == {
        k: v["metrics"] for k, v in outcome(finished).items()
    }
    train_sweep(pair(tmp_path, force=True))  # and once more
    assert steps == [2] * 8
    kept = sorted(path.name for path in (tmp_path / "adhoc/before").iterdir())
    assert kept == sorted([*ids, *(f"{run_id}.2" for run_id in ids)])


def test_what_another_process_has_put_in_its_place_stays_there(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    place = Record.of(pair(tmp_path)[0])
    new = Record(tmp_path / "adhoc/again" / place.folder.name)
    new.folder.mkdir(parents=True)
    new.content = place.content
    new.save(new=True)
    first, second = Record.read(new.folder), Record.read(new.folder)
    holder = Record.of(pair(tmp_path)[0])
    assert holder.claim()  # another process trains there
    assert again.replace(first) is first
    assert "new" not in Record.read(place.folder).content
    assert Record.read(new.folder).content["new"]
    assert not (tmp_path / "adhoc/before").exists()
    holder.release()
    for one in (first, second):
        assert again.replace(one).content["new"]
    assert Record.read(place.folder).content["new"]
    assert len(list((tmp_path / "adhoc/before").iterdir())) == 1


def test_a_forced_run_goes_on_where_it_was_killed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        when(patch, lambda t: t.step > 3, throw(Killed))
        with pytest.raises(Killed):
            train_sweep(pair(tmp_path, force=True))
    assert outcome(tmp_path) == outcome(finished)  # nothing has changed yet
    taken = len(steps)
    train_sweep(pair(tmp_path, force=True))
    assert len(steps) - taken == 2  # the second epoch
    assert all("old" not in content["record"] for content in outcome(tmp_path).values())


def test_whenever_it_dies_there_is_an_old_or_a_new_result_of_every_run(
    finished: Path, tmp_path: Path, steps: list[int]
) -> None:
    """And without force the sweep is complete again, with no step taken."""
    at, moments = 0, float("inf")
    while at < moments:
        folder = tmp_path / str(at)
        shutil.copytree(finished, folder)
        if train_until(at, pair(folder, force=True)):
            moments = at
        for config in pair(folder):
            places = [folder / "adhoc" / part / config.run_id for part in ("", "again", "before")]
            contents = [r.content for path in places if (r := Record.unread(config)) and known(path, r)]
            old = [content for content in contents if content.get("old")]
            new = [
                content for content in contents if content["status"] == "finished" and "old" not in content
            ]
            assert old, at
            assert old[0]["status"] == "finished"
            here = Record.of(config)
            assert here.done or new, at
        steps.clear()
        train_sweep(pair(folder, force=False))
        assert not steps, at
        for config in pair(folder):
            assert Record.of(config).done
            assert evaluated(Record.of(config).folder) == Record.of(config).content["final"]["test_loss"]
        at += 1 if at < 3 else 4
        shutil.rmtree(folder)
    assert at > 20


def known(path: Path, record: Record) -> bool:
    """Whether there is a record in the folder, which ``record`` then is."""
    if not (path / "record.json").exists():
        return False
    record.content = Record.read(path).content
    return True


def test_what_stopped_before_it_took_its_place_is_taken_over(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (config, _) = pair(tmp_path)
    place = tmp_path / "adhoc" / config.run_id
    (tmp_path / "adhoc/again").mkdir()
    place.rename(tmp_path / "adhoc/again" / config.run_id)
    assert again.reuse([Record.of(config)]) == {config.run_id}
    assert whole(place)["old"]


# Other code


PAIR = "-m norm=none seed=0,1 trainer.epochs=1"


def test_a_changed_source_file_is_told(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(PAIR).status == 0
    assert call("norm=none seed=5").status == 0
    assert "other code" not in call("norm=none seed=5").out
    made = Record.of(config := Config.model_validate(config_of(tmp_path, seed=5))).content["provenance"]
    package = tmp_path / "wn"
    shutil.copytree(provenance.ROOT / "wn", package)
    assert provenance.source(package) == made["source"]
    (package / "report/page.py").write_text("")  # decides no number
    assert provenance.source.__wrapped__(package) == made["source"]
    (package / "optim.py").write_text("lr = 1\n")
    changed = provenance.source.__wrapped__(package)
    assert changed != made["source"]
    monkeypatch.setattr(provenance, "source", lambda: changed)
    commit = f"commit {made['commit'][:12]}" if made["commit"] else "no commit is known"
    line = f"trained by other code: {commit}{', with changes' * bool(made['dirty'])}"
    line += "; trainer.force=true trains again"
    assert f"1 of them {line}\n" in call("norm=none seed=5").out
    assert f"2 of them {line}\n" in call(PAIR).out
    trained.load(Record.of(config).folder)
    assert line in capsys.readouterr().out  # the logs of Hydra's applications
    assert provenance.other_code({"commit": "c", "dirty": False}) == ""  # a record from before the check


def config_of(folder: Path, seed: int) -> dict[str, Any]:
    found = records(folder / "runs/adhoc").values()
    (config,) = (r["config"] for r in found if r["config"]["seed"] == seed)
    return {**config, "runs_dir": str(folder / "runs")}
