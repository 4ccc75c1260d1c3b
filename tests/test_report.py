"""The report as a whole: its command, what it writes where, and that this is always the same."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_cases import (
    ELBOS,
    LRS,
    NAME,
    SEEDS,
    SWEEP,
    TABLE,
    config,
    contents,
    data_in,
    declare,
    publish_curve,
    run_of,
    write_record,
    write_run,
    write_seeds,
    write_sweep,
)

from wn import experiments
from wn.presets import PRESETS
from wn.records import Record
from wn.report import charts, collect, curves, figures
from wn.report.__main__ import main
from wn.report.plan import Plan, of_experiment
from wn.report.status import expected_seconds, status

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return declare(tmp_path, monkeypatch, SWEEP)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr(
        curves, "draw", lambda *_: ({}, {"x": "lr", "y": "error", "line": "line", "points": pd.DataFrame()})
    )


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command and returns what it prints."""

    def told(*words: str, status: int = 0) -> str:
        assert main(words) == status
        out, err = capsys.readouterr()
        assert not (err and status == 0)
        return str(err if status else out)

    return told


# A sweep of an experiment ----------------------------------------------------------------------------


def test_records_to_tables_and_figures(tmp_path: Path, plan: Plan, told: Any) -> None:
    write_sweep(tmp_path / "runs", plan)
    (tmp_path / "README.md").write_text("front", encoding="utf-8")
    before = contents(tmp_path)
    text = told(NAME)
    folder = tmp_path / "runs" / NAME / "report"
    figures = {f"{name}.{kind}" for name in ("error", "loss", "trajectories") for kind in ("svg", "png")}
    files = {"runs.csv", "curves.csv", "table.csv", "table.md", "points.csv", "summary.json", "page.md"}
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
    files = {"runs.csv", "curves.csv", "table.csv", "table.md"}
    files |= {f"{name}.{kind}" for name in ("error", "loss", "trajectories") for kind in ("svg", "png")}
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


# Identity --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_other_settings_fills_no_cell_and_is_named(tmp_path: Path, plan: Plan, told: Any) -> None:
    own = run_of(plan, "none", 0.1, 0)
    for field, value in (("batch_size", 10), ("precision", "bfloat16")):
        other = own.model_copy(update={"trainer": own.trainer.model_copy(update={field: value})})
        write_record(tmp_path / "runs" / NAME, other, 0.01)
        text = told(NAME)
        assert f"1 record in runs/{NAME} is of no run of {NAME} as it is now" in text
        assert f"(first: {other.run_id})" in text
        assert "0 of 18 runs done" in text
        shutil.rmtree(tmp_path / "runs")
    elsewhere = own.trainer.model_copy(update={"device": "cpu", "compile": True, "progress": False})
    write_record(tmp_path / "runs" / NAME, own.model_copy(update={"trainer": elsewhere}), 0.01)
    assert "none, 1 of 9 runs done" not in told(NAME), "all rows are pending: one line for all"
    assert "1 of 18 runs done" in told(NAME)


@pytest.mark.usefixtures("no_figures")
def test_committed_rows_of_a_changed_preset_go_and_are_named(
    tmp_path: Path, plan: Plan, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "runs", plan)
    told(NAME, "--publish")
    shifted = {**SWEEP, "grid": {**SWEEP["grid"], "optim.lr": [0.1, 1.0, 10.0]}}
    plan = declare(tmp_path, monkeypatch, shifted)
    rows, notes = collect.committed(plan, tmp_path / "results" / NAME)
    assert len(rows.runs) == 12
    assert set(rows.curves["run_id"]) <= set(rows.runs.index)
    assert notes[0].startswith(
        f"6 committed rows in {tmp_path}/results/{NAME}/runs.csv are of no run of {NAME}"
    )
    monkeypatch.setattr("wn.config.compose.CONFIGS", tmp_path / "configs")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "optim" / "sgd.yaml").write_text("name: sgd\nmomentum: 0.5\n")
    from wn.config import compose

    compose._preset.cache_clear()
    try:
        text = told(NAME, "--runs-dir", "nothing")
        assert f"18 committed rows in results/{NAME}/runs.csv are of no run of {NAME} as it is now" in text
        assert "0 of 18 runs done" in text
        assert "18 committed rows" in told(NAME, "--publish", "--runs-dir", "nothing")
    finally:
        compose._preset.cache_clear()


def test_a_row_is_read_as_it_was_written(tmp_path: Path, plan: Plan, told: Any, no_figures: None) -> None:
    write_sweep(tmp_path / "runs", plan, seconds=0.1 + 0.2)
    told(NAME)
    folder = tmp_path / "runs" / NAME / "report"
    rows, _ = collect.committed(plan, folder)
    assert set(rows.runs["seconds"]) == {0.1 + 0.2}, "all digits"
    gone = rows.runs[rows.runs["status"] == "diverged"].iloc[0]
    assert (gone["diverged_epoch"], gone["diverged_step"], str(gone["valid_error"])) == (1, 7, "nan")
    again = tmp_path / "again"
    again.mkdir()
    collect.write(plan, rows, again)
    for name in ("runs.csv", "curves.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert list(rows.curves["layer"].unique()) == ["hidden0", "hidden1", "output"], "in the model's order"
    drawn = figures.trajectory_figure(plan, rows)
    assert "layer hidden1," in drawn.get_supxlabel(), "the middle one"
    assert set(rows.runs.loc[rows.curves["run_id"], "seed"]) == {0}
    assert 0.0033333 in set(rows.curves["value"]), "five digits"


# Any other sweep -------------------------------------------------------------------------------------


def test_any_folder_has_its_report(tmp_path: Path, told: Any, no_figures: None) -> None:
    folder = tmp_path / "elsewhere" / "mine"
    for width, norm, lr, seed in itertools.product((8, 16), ("none", "batch_norm"), LRS, (0, 1)):
        if (width, norm, lr) != (16, "none", 1.0) and (width, norm, seed) != (8, "batch_norm", 1):
            run = config(norm=norm, optim__lr=lr, seed=seed, model__widths=[width], trainer__epochs=2)
            write_record(folder, run, lr / 10 + seed / 100)
    text = told(str(folder))
    assert re.search(r"^\[8\] +none  0\.01 \(edge\) +0\.60 ± ", text, re.M)
    assert re.search(r"^\[16\] +none \* ", text, re.M)
    assert "*: model.widths=[16], none: learning rates 0.01, 0.1 where most rows have 0.01, 0.1, 1" in text
    assert "*: model.widths=[8], batch_norm: seeds 0 where most rows have 0, 1" in text
    assert (folder / "report" / "page.md").exists()
    assert not (tmp_path / "results").exists()
    assert "mine" in told(str(folder), "--publish", status=2)


def test_a_seed_without_some_learning_rates_does_not_count(
    tmp_path: Path, told: Any, no_figures: None
) -> None:
    for lr, seed in ((0.1, 0), (0.2, 0), (0.1, 1)):
        write_record(tmp_path / "runs" / "adhoc", config(optim__lr=lr, seed=seed), 0.1)
    text = told("adhoc")
    assert "seeds 1 lack some of its learning rates and do not count" in text
    assert re.search(r"weight_norm \* +0\.1 \(edge\) +10\.00 ± n/a +1 ", text)


def test_what_did_not_finish_is_named(tmp_path: Path, told: Any, no_figures: None) -> None:
    folder = tmp_path / "runs" / "adhoc"
    write_record(folder, config(seed=0), 0.1)
    write_record(folder, config(seed=1), 0.1, status="failed", error="CUDA error")
    write_record(folder, config(seed=2), 0.1, status="running")
    write_record(folder, config(seed=3), 0.1, schema=1, run_id="0" * 12)
    (folder / "broken").mkdir()
    (folder / "broken" / "record.json").write_text("{")
    text = told("adhoc")
    assert f"1 run failed (first: {config(seed=1).run_id}: CUDA error)" in text
    assert (
        f"1 run in training or cut short: the same command goes on (first: {config(seed=2).run_id})" in text
    )
    assert "1 record in runs/adhoc is of another version of the settings" in text
    assert "1 record in runs/adhoc cannot be read; training sets them aside (first: broken)" in text


@pytest.mark.parametrize(
    ("runs", "files"),
    [
        ([(0.1, 0, 0.0), (0.1, 1, None)], {"curves.svg", "trajectories.svg"}),
        ([(0.1, 0, None), (1.0, 0, None)], {"error.svg", "loss.svg", "trajectories.svg"}),
    ],
)
def test_the_smallest_sweeps_can_be_drawn(
    runs: list[Any], files: set[str], tmp_path: Path, told: Any
) -> None:
    for lr, seed, end in runs:
        run = config(optim__lr=lr, seed=seed, trainer__epochs=4)
        record = write_record(tmp_path / "runs" / "adhoc", run, end)
        probe = {"epoch": 0, "step": 0, "layer": "a", "w_norm_mean": 1.0, "effective_lr": lr}
        (record / "probes.jsonl").write_text(json.dumps(probe) + "\n")
    told("adhoc")
    assert {path.name for path in (tmp_path / "runs" / "adhoc" / "report").glob("*.svg")} == files


def test_of_classifiers_and_vaes_in_one_folder_the_more_are_shown(
    tmp_path: Path, told: Any, no_figures: None
) -> None:
    for lr in (0.1, 0.2):
        write_record(tmp_path / "runs" / "adhoc", config(optim__lr=lr), lr)
        write_record(tmp_path / "runs" / "adhoc", config(model="mlp_vae", optim="adam", optim__lr=lr), 30.0)
        write_record(tmp_path / "runs" / "adhoc", config(data="mnist", optim__lr=lr), lr)
    text = told("adhoc")
    assert "test error %" in text
    assert "test ELBO (nats)" not in text
    assert "2 runs of VAEs are not shown" in text
    assert re.search(r"^mnist +weight_norm", text, re.M)


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
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
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
    for name in ["README.md", *names]:
        for path in (ROOT / "results").glob(f"{name}/*" if name in names else name):
            if path.is_file() and path.suffix != ".png":
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


# Status ----------------------------------------------------------------------------------------------


def test_status_counts_every_run_once(tmp_path: Path, plan: Plan) -> None:
    for seed in SEEDS:
        write_run(tmp_path / "runs", plan, "none", 1.0, seed, seconds=30.0)
    write_run(tmp_path / "runs", plan, "weight_norm", 1.0, 0, status="failed")
    write_run(tmp_path / "runs", plan, "weight_norm", 1.0, 1, status="running")
    write_record(tmp_path / "runs" / NAME, config(seed=7), 0.1)
    heading, line, note, failure = status(tmp_path / "runs", tmp_path / "results").splitlines()
    assert failure.startswith(f"1 run of {NAME} failed; the same command trains it again (first: ")
    cells = dict(zip(heading.split(), line.split(maxsplit=8), strict=True))
    assert cells == {
        "experiment": NAME,
        "runs": "18",
        "done": "3",
        "diverged": "1",
        "running": "1",
        "failed": "1",
        "missing": "13",
        "GB": cells["GB"],
        "rest": "8 minutes",
    }
    assert 0 < float(cells["GB"]) < 1e-3
    assert note.startswith(f"1 row or record of no run of {NAME} as it is now")


def test_expected_seconds() -> None:
    seconds = {"none": [1.0, 3.0], "batch_norm": [10.0]}
    assert expected_seconds(seconds, ["none", "none", "batch_norm"]) == 2 + 2 + 10
    assert expected_seconds(seconds, ["weight_norm"]) == 14 / 3, "the mean of all"
    assert expected_seconds({}, ["none"]) is None
    assert expected_seconds({}, []) == 0


def test_status_reads_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"norm": ["none"], "optim.lr": [0.1 * k for k in range(1, 11)], "seed": list(range(40))}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "grid": grid})
    for group in plan.groups:
        for own in group.configs.values():
            write_record(tmp_path / "runs" / NAME, own, 0.1)
    read: list[Path] = []
    reader = Record.read.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Record, "read", classmethod(lambda cls, folder: (read.append(folder), reader(cls, folder))[1])
    )
    begin = time.process_time()
    status(tmp_path / "runs", tmp_path / "results")
    assert time.process_time() - begin < 400 * 0.002, "0.5 ms a run, and room for a slow machine"
    assert len(read) == len(set(read)) == 400
