"""The report as a whole: its command, what it writes where, and that this is always the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_cases import (
    ELBOS,
    LRS,
    NAME,
    SEEDS,
    TABLE,
    config,
    contents,
    data_in,
    declare,
    publish_curve,
    write_record,
    write_run,
    write_seeds,
    write_sweep,
)

from wn import experiments
from wn.presets import PRESETS
from wn.records import Record
from wn.report import charts, collect, figures
from wn.report.plan import Plan, of_experiment

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("plan")


# A sweep of an experiment ----------------------------------------------------------------------------


def test_records_to_tables_and_figures(tmp_path: Path, plan: Plan, told: Any) -> None:
    write_sweep(tmp_path / "runs", plan)
    (tmp_path / "README.md").write_text("front", encoding="utf-8")
    before = contents(tmp_path)
    text = told(NAME)
    folder = tmp_path / "runs" / NAME / "report"
    figures = {f"{name}.{kind}" for name in ("error", "loss", "trajectories") for kind in ("svg", "png")}
    files = {"runs.csv", "curves.csv", "table.csv", "points.csv", "summary.json", "page.md"}
    assert set(contents(folder)) == files | figures
    assert {k: v for k, v in contents(tmp_path).items() if "/report/" not in k} == before, (
        "nothing else changes"
    )
    for column in ("norm", "best lr", "0/9", "5.00 ± 2.48"):
        assert column in text
        assert column in (folder / "page.md").read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["x"], summary["y"], summary["line"]) == ("lr", "error", "line")
    assert summary["figures"] == ["error.png", "loss.png", "trajectories.png"]
    assert all((folder / name).exists() for name in summary["figures"])
    heading, *rows = (folder / summary["points"]).read_text().splitlines()
    points = [dict(zip(heading.split(","), row.split(","), strict=True)) for row in rows]
    (point,) = (row for row in points if row["line"] == "none" and row["lr"] == "1.0")
    assert (point["runs"], point["diverged"], float(point["error"])) == ("3", "1", 90.0)


def test_publishing_and_publishing_again_without_records(tmp_path: Path, plan: Plan, told: Any) -> None:
    begin, end = f"<!-- begin {NAME}: written by python -m wn.report -->\n", f"<!-- end {NAME} -->\n"
    (tmp_path / "README.md").write_text(begin + "old\n" + end, encoding="utf-8")
    (tmp_path / "results" / "bench").mkdir(parents=True)
    (tmp_path / "results" / "bench" / "step.md").write_text("# A step\n| ms |\n")
    (tmp_path / "results" / NAME).mkdir()
    (tmp_path / "results" / NAME / "bound.svg").write_text("of an earlier form")
    write_sweep(tmp_path / "runs", plan)
    told(NAME, "--publish")
    before = contents(tmp_path / "results")
    files = {"runs.csv", "curves.csv", "table.csv", "error.svg", "loss.svg", "trajectories.svg"}
    assert set(before) == {"README.md", "bench/step.md"} | {f"{NAME}/{name}" for name in files}
    assert "<dc:date>" not in before[f"{NAME}/error.svg"].decode()
    assert "- [A step](bench/step.md)" in before["README.md"].decode()
    front = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| norm | best lr | test error % | n | S (nats) | width +1pp | width ×1.5 |" in front
    shutil.rmtree(tmp_path / "runs")
    told("--publish")
    assert contents(tmp_path / "results") == before
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == front


@pytest.mark.usefixtures("no_figures")
def test_results_of_several_machines_add_up(tmp_path: Path, plan: Plan, told: Any) -> None:
    write_run(tmp_path / "a", plan, "none", 0.1, 0, seconds=1.0)
    write_run(tmp_path / "a", plan, "none", 0.01, 1, seconds=1.0)
    write_run(tmp_path / "b", plan, "none", 0.1, 0, seconds=2.0)
    write_run(tmp_path / "b", plan, "weight_norm", 1.0, 0, seconds=2.0)
    write_run(tmp_path / "b", plan, "weight_norm", 1.0, 1, status="failed")
    for folder in ("a", "b"):
        told(NAME, "--publish", "--runs-dir", folder)
    rows = pd.read_csv(tmp_path / "results" / NAME / "runs.csv")
    assert list(zip(rows["norm"], rows["lr"], rows["seed"], rows["seconds"], strict=True)) == [
        ("none", 0.01, 1, 1.0),
        ("none", 0.1, 0, 2.0),
        ("weight_norm", 1.0, 0, 2.0),
    ]
    assert list(rows.loc[0, ["commit", "dirty", "stack_size"]]) == ["c" * 40, False, 2]


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_run_tells_all_that_trained_it(tmp_path: Path, plan: Plan, told: Any) -> None:
    first, second = ({"commit": c * 40, "dirty": False, "torch": "2.15"} for c in "ab")
    last = {"commit": "a" * 40, "dirty": False, "device": "CPU, then GPU", "packages": {"torch": "2.16"}}
    write_run(tmp_path / "runs", plan, "none", 0.1, 0, provenance=last | {"before": [first, second]})
    write_run(tmp_path / "runs", plan, "none", 0.1, 1)
    told(NAME, "--publish")
    rows = pd.read_csv(tmp_path / "results" / NAME / "runs.csv", dtype=str)
    assert list(rows.loc[0, ["commit", "torch"]]) == [f"{'a' * 40}, then {'b' * 40}", "2.15, then 2.16"]
    page = (tmp_path / "results" / "README.md").read_text(encoding="utf-8")
    facts = "device CPU, GPU; precision float32; torch 2.15, 2.16; commit aaaaaaaaaa, bbbbbbbbbb, cccccccccc;"
    assert facts in page


def test_what_is_committed_is_shown_where_nothing_is_local(
    tmp_path: Path, plan: Plan, told: Any, no_figures: None
) -> None:
    write_sweep(tmp_path / "runs", plan)
    told(NAME, "--publish")
    before = contents(tmp_path / "results")
    text = told(NAME, "--runs-dir", "nothing")
    assert "5.00 ± 2.48" in text
    assert f"the committed rows, in results/{NAME}" in text
    assert contents(tmp_path / "results") == before
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("no_figures")
def test_what_is_not_measured_is_pending_and_says_how(tmp_path: Path, plan: Plan, told: Any) -> None:
    for lr in LRS:
        for seed in SEEDS:
            write_run(tmp_path / "runs", plan, "none", lr, seed)
    text = told(NAME)
    row = next(line for line in text.splitlines() if line.startswith("weight_norm "))
    assert "pending" in row
    assert not re.search(r"\d\.\d", row)
    assert f"weight_norm, 0 of 9 runs done: python -m wn.train +experiment={NAME} norm=weight_norm" in text
    assert "pending" in told(NAME, "--runs-dir", "nothing")


# Tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [TABLE | {"curves": "paper/bounds.yaml"}, ELBOS])
def test_a_list_of_rows_is_drawn_and_published(
    tree: Any, tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_curve(tmp_path, "paper/bounds.yaml", {"ours": [[1, 60.0], [4, 15.0]], "WN": [[10, -91.0, 0.1]]})
    plan = declare(tmp_path, monkeypatch, tree)
    first = plan.groups[0]
    ends: list[float | None] = [None, 0.0, 0.08] if plan.metric.key == "error" else [None, 86.0, 87.0]
    write_seeds(tmp_path / "runs", plan, first.norm, first.lrs[0], ends)
    told(NAME, "--publish")
    before = contents(tmp_path / "results")
    page = before["README.md"].decode()
    figures = {"error": {"curves"}, "loss": {"curves", "parts"}}[plan.metric.key]
    assert {path for path in before if path.endswith(".svg")} == {f"{NAME}/{name}.svg" for name in figures}
    assert "1 diverged" in page
    told(NAME, "--publish", "--runs-dir", "nothing")
    assert contents(tmp_path / "results") == before


def test_every_preset_has_its_own_look() -> None:
    assert set(figures.STYLE) == set(PRESETS)
    looks = list(figures.STYLE.values())
    assert {marker for _, marker, _ in looks} <= set(charts.SHAPES), "in a browser too"
    assert len({color for color, *_ in looks}) == len(looks)
    assert len({(marker, line) for _, marker, line in looks}) == len(looks), "in grey"


def test_committed_results_are_those_of_the_committed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(experiments, "FOLDER", ROOT / "experiments")
    names = [name for name in experiments.names() if (ROOT / "results" / name / collect.RUNS).exists()]
    shutil.copytree(ROOT / "results", tmp_path / "results")
    if not any(len(collect.committed(of_experiment(n), ROOT / "results" / n)[0].runs) for n in names):
        pytest.skip("no committed row counts")
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    emptied = re.sub(r"(?s)(report -->\n).*?(<!-- end)", r"\1\2", front)
    (tmp_path / "README.md").write_text(emptied, encoding="utf-8")
    told("--publish", "--runs-dir", "nothing")
    told("claims", "--publish", "--runs-dir", "nothing")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == front, (
        "stale: python -m wn.report --publish"
    )
    for pattern in ["README.md", "claims/*", *(f"{name}/*" for name in names)]:
        for path in (ROOT / "results").glob(pattern):
            if path.is_file():
                again = tmp_path / "results" / path.relative_to(ROOT / "results")
                shown, fresh = (
                    data_in(page.read_text(encoding="utf-8")) if page.suffix == ".html" else page.read_bytes()
                    for page in (path, again)
                )
                if isinstance(shown, dict) and isinstance(fresh, dict):
                    del shown["settings"], fresh["settings"]  # a new setting is no reason to publish again
                assert fresh == shown, f"{path}: stale"


# The command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"run_id,status,seconds\n0123456789ab,finished,0.1",
        b"run_id,status,seconds\n0123456789ab,finished,0.1\n0123456789",
        b"<<<<<<< HEAD\nrun_id,status,seconds\n",
        b"run_id,status,seconds\n<<<<<<< HEAD\n0123456789ab,finished,0.1\n",
        b"run_id,status,seconds\n0123456789ab,\xff,0.1\n",
        b"run_id,status,seconds\n0123456789ab,finished,0.1\n0123456789ab,finished,0.1\n",
    ],
)
def test_a_damaged_file_is_named_in_one_line(content: bytes, tmp_path: Path, told: Any) -> None:
    (tmp_path / "results" / NAME).mkdir(parents=True)
    (tmp_path / "results" / NAME / "runs.csv").write_bytes(content)
    text = told(NAME, status=2)
    assert re.fullmatch(rf"error: results/{NAME}/runs\.csv: empty, cut short .*git checkout.*\n", text)
    assert text.removeprefix("error: ") in told("--status")  # which goes on with the others


def test_a_name_that_is_neither_is_told_the_nearest(told: Any, tmp_path: Path) -> None:
    assert told("robst", status=2) == (
        "error: robst: no experiment, and no folder of records; did you mean 'robust'?\n"
    )
    (tmp_path / "runs" / "adhoc").mkdir(parents=True)
    assert "no records" in told("adhoc", status=2)
    assert "no records yet" in told(status=2)
    record = Record.read(write_record(tmp_path / "runs" / "old", config(), 0.1))
    record.save(run_id="0123456789ab")  # as the same settings had in another schema
    assert "1 record in runs/old is of another version of the settings" in told("old", status=2)


def test_a_folder_that_cannot_be_written_to_is_named(
    told: Any, plan: Plan, tmp_path: Path, no_figures: None
) -> None:
    write_run(tmp_path / "runs", plan, "none", 0.1, 0)
    (tmp_path / "results").write_text("a file")
    assert re.fullmatch(r"error: \S*results\S*: Not a directory\n", told(NAME, "--publish", status=2))


def test_the_command_alone(tmp_path: Path, plan: Plan) -> None:
    for seed in range(2):
        write_record(tmp_path / "runs" / "adhoc", config(optim__lr=0.1, seed=seed, trainer__epochs=2), 0.1)
    environment = {**os.environ, "MPLBACKEND": "nonsense", "PYTHONIOENCODING": "ascii"}
    command = f"{sys.executable} -m wn.report --runs-dir {tmp_path / 'runs'} adhoc"
    whole = subprocess.run(command.split(), cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (whole.returncode, whole.stderr) == (0, b"")
    assert "10.00 ± 0.00" in whole.stdout.decode("utf-8")
    cut = subprocess.run(
        f"{command} --status | head -0",
        cwd=ROOT,
        shell=True,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert cut.stderr == b""
    code = "import sys, wn.report.__main__; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0, "for --status"
