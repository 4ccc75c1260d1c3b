"""A verdict counts only where the criterion is older than its rows; the page says what it rests on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from wn.claims import criteria
from wn.config import UserError, places
from wn.report.__main__ import main
from wn.report.claims import collect, page

CRITERION = {
    "id": "B3",
    "section": "2.1",
    "statement": "Noisier gradients make it grow faster.",
    "type": "law",
    "paper": "asserted, no data",
    "design": "An MLP.",
    "control": "The same without noise.",
    "quantities": {"slope": {"what": "slope", "rule": "above", "confirmed": 1, "refuted": 0.3}},
    "conditions": {"mlp, SGD": "", "vae, SGD": ""},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one criterion, committed."""
    monkeypatch.setattr(criteria, "FOLDER", tmp_path / "experiments" / "claims")
    monkeypatch.setattr(collect, "ROOT", tmp_path)
    collect._criterion_at.cache_clear()
    criteria.FOLDER.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, CRITERION)
    return tmp_path


def write(project: Path, criterion: dict[str, Any]) -> str:
    """Commit a criterion; the commit."""
    (criteria.FOLDER / "B3.yaml").write_text(yaml.safe_dump(criterion))
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "criterion"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def measured(project: Path, commit: str | None, dirty: bool | None = False, value: float = 2.0) -> None:
    """Rows of both conditions as a measurement at that commit leaves them."""
    rows: list[dict[str, Any]] = [
        {"condition": condition, "quantity": "slope", "seed": seed, "value": value + 0.01 * seed}
        for condition in CRITERION["conditions"]  # type: ignore[attr-defined]
        for seed in range(5)
    ]
    for name, control in (("plain", 0.5), ("other", 1.23499999)):  # with 7 digits 1.235, which is 1.24
        rows.append({"condition": "mlp, SGD", "quantity": f"control {name}", "seed": 0, "value": control})
    content = {
        "criterion": criteria.digest_of("B3"),
        "commit": commit,
        "dirty": dirty,
        "device": "a CPU",
        "torch": "2",
        "seconds": 30.0,
        "rows": rows,
    }
    path = project / "runs" / "claims" / "B3" / "all.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def found(project: Path) -> collect.Found:
    collect._criterion_at.cache_clear()
    (one,) = collect.gather(project / "runs", project / "results")
    return one


def head(project: Path) -> str:
    return write(project, {**CRITERION, "design": "Another MLP."})


def test_rows_after_the_criterion_count(project: Path):
    measured(project, head(project))
    assert (found(project).order, found(project).word) == (collect.VERIFIED, "confirmed")


def test_a_criterion_that_was_changed_later_voids_its_rows(project: Path):
    measured(project, head(project))
    collect.publish([found(project)], project / "results" / "claims")
    write(project, CRITERION)
    one = found(project)
    assert (one.word, one.order) == ("not tested", collect.VOID)  # so that publishing deletes none


def test_rows_older_than_their_criterion_are_void(project: Path):
    old = head(project)
    write(project, {**CRITERION, "design": "A third MLP."})
    measured(project, old)  # of the newest criterion, by a commit that has an older one
    assert (found(project).order, found(project).word) == (collect.VOID, "not tested")


def published(project: Path) -> dict[str, str]:
    """What ``--publish`` leaves, by file."""
    collect._criterion_at.cache_clear()
    places = ["--runs-dir", str(project / "runs"), "--results-dir", str(project / "results")]
    assert main(["claims", "--publish", *places]) == 0
    return {path.name: path.read_text() for path in (project / "results" / "claims").iterdir()}


def test_rows_of_uncommitted_code_are_void_and_change_no_committed_one(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    commit = head(project)
    measured(project, commit)
    before = published(project)
    measured(project, commit, dirty=True)
    one = found(project)
    assert (one.order, one.word, len(one.rows)) == (collect.VOID, "not tested", 0)
    assert f"Verdict: **not tested** ({collect.NOT_COUNTED})" in page.page([one], {})
    capsys.readouterr()
    where = ["--runs-dir", str(project / "runs"), "--results-dir", str(project / "results")]
    assert main(["claims", *where]) == 0
    assert collect.NOT_COUNTED in capsys.readouterr().out
    assert main(["claims", "--publish", *where]) == 2
    assert capsys.readouterr().err == f"error: B3: {collect.NOT_COUNTED}; nothing is published\n"
    folder = project / "results" / "claims"
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.02,", "2.0x,"),
        ("criterion,", ""),
        ("slope,3", "slope,3\n<<<<<<< HEAD\nslope,3"),
        ("a CPU,2,30.0\n", "a CPU,2,30.0\n=======\n"),
        ("30.0\n", "30.0"),
        ("\n", ""),
    ],
)
def test_damaged_rows_are_named_and_none_is_lost(old: str, new: str, project: Path):
    measured(project, head(project))
    text = published(project)["B3.csv"]
    (project / "runs" / "claims" / "B3" / "all.json").unlink()
    head_, _, tail = text.rpartition(old) if old.endswith("\n") else text.partition(old)
    path = project / "results" / "claims" / "B3.csv"
    path.write_text(head_ + new + tail)
    with pytest.raises(UserError, match=r"B3.csv: empty, cut short or in conflict"):
        found(project)


@pytest.mark.parametrize("commit", [None, "0" * 40])
def test_without_history_the_order_is_unverified(project: Path, commit: str | None):
    measured(project, commit)
    assert (found(project).order, found(project).word) == (collect.UNVERIFIED, "confirmed")


def test_a_note_lowers_a_verdict(project: Path):
    measured(project, head(project))
    (criteria.FOLDER / "notes").mkdir()
    (criteria.FOLDER / "notes" / "B3.yaml").write_text("lower: {to: open, why: one data set}")
    assert found(project).word == "open"
    (criteria.FOLDER / "notes" / "B3.yaml").write_text("lower: {to: confirmed with limits, why: one}")
    assert found(project).word == "confirmed with limits"


def test_every_committed_note_that_lowers_a_verdict_does() -> None:
    """Where the verdict is as weak already, its reason would be shown nowhere."""
    found = collect.gather(Path("nothing"), places.ROOT / "results")
    lowering = [one for one in found if one.notes.lower and one.word != "not tested"]
    assert lowering
    assert [one.claim.id for one in lowering if not one.lowered] == []


@pytest.mark.parametrize(("value", "word"), [(0.0, "refuted"), (0.3, "open"), (None, "not tested")])
def test_a_note_raises_none(project: Path, value: float | None, word: str):
    if value is not None:
        measured(project, head(project), value=value - 0.02)
    (criteria.FOLDER / "notes").mkdir()
    (criteria.FOLDER / "notes" / "B3.yaml").write_text("lower: {to: confirmed with limits, why: one}")
    assert found(project).word == word


def test_a_stale_part_hides_no_committed_one(project: Path):
    measured(project, head(project))
    published(project)
    path = project / "runs" / "claims" / "B3" / "all.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "criterion": "0" * 12}))
    assert found(project).word == "confirmed"


def test_a_part_that_was_renamed_counts_once(project: Path):
    measured(project, head(project))
    path = project / "runs" / "claims" / "B3" / "all.json"
    path.with_name("every.json").write_text(path.read_text())
    with pytest.raises(UserError, match=r"^B3, mlp, SGD: a seed twice, in all and every; delete what is old"):
        found(project)


def test_a_part_that_has_no_rows_any_more_takes_the_place_of_the_committed_one(project: Path):
    measured(project, head(project))
    published(project)
    path = project / "runs" / "claims" / "B3" / "all.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": []}))
    assert found(project).word == "not tested"


def test_published_rows_lead_to_the_same_page(project: Path, capsys: pytest.CaptureFixture[str]):
    measured(project, head(project))
    readme = project / "README.md"
    begin = "<!-- begin claims: written by python -m wn.report -->\n"
    readme.write_text(f"{begin}<!-- end claims -->\n")
    first = published(project)
    assert "slope: 2.020 ± 0.020 (mlp, SGD) | confirmed" in first["README.md"]
    assert "| other | 1.24 |\n| plain | 0.5 |" in first["README.md"]
    assert (
        "**1 statements of the paper: 1 confirmed. The paper shows data for 0 of them.**"
        in readme.read_text()
    )
    (project / "runs" / "claims" / "B3" / "all.json").unlink()
    assert published(project) == first
    assert "confirmed" in capsys.readouterr().out


def test_what_the_paper_does_not_say_is_counted_apart(project: Path):
    measured(project, head(project))
    one = found(project)
    others = [
        one._replace(notes=criteria.Notes(ours=True)),
        one._replace(claim=one.claim.model_copy(update={"again": "B3"}), notes=criteria.Notes(ours=True)),
    ]
    assert page.counts([one, *others]) == (
        "1 statements of the paper: 1 confirmed. The paper shows data for 0 of them. "
        "1 statements of ours beside them: 1 confirmed. 1 tests repeat one in another setting: 1 confirmed."
    )
