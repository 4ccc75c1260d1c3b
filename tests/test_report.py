"""The report as a whole: what it writes, that this is always the same, and its command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from report_cases import ERRORS, LRS, NAME, SEEDS, contents, declare, write_all, write_run

from wn import experiments, report
from wn.experiments import Experiment
from wn.presets import PRESETS
from wn.report import collect, figures, measures, page, robustness, statistics
from wn.report.__main__ import main
from wn.report.status import expected_seconds, status

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    return declare(tmp_path, monkeypatch)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])


def test_build_and_build_again_from_the_rows_alone(tmp_path: Path) -> None:
    write_all(tmp_path / "runs")
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    before = contents(tmp_path / "results")
    expected = {"README.md"} | {f"{NAME}/{name}" for name in ("runs.csv", "trajectories.csv", "table.csv")}
    expected |= {f"{NAME}/table.md"} | {
        f"{NAME}/{name}.{kind}" for name in ("error", "loss", "trajectories") for kind in ("svg", "png")
    }
    assert set(before) == expected
    assert report.build(NAME, tmp_path / "nothing", tmp_path / "results") == built
    assert contents(tmp_path / "results") == before
    assert [path.read_bytes()[1:4] for path in built.figures] == [b"PNG"] * 3
    assert "<dc:date>" not in before[f"{NAME}/error.svg"].decode()
    json.dumps([built.curves, built.table], allow_nan=False)  # plain values
    (point,) = (row for row in built.curves if row["norm"] == "none" and row["lr"] == 1.0)
    assert (point["runs"], point["diverged"], point["error"]) == (3, 1, 0.9)
    for column in ("norm", "best lr", "0/9", "5.00 ± 2.48"):
        assert column in built.text
        assert column in before["README.md"].decode()


@pytest.mark.parametrize("errors", [[0.0], [None], [0.5]])
def test_the_smallest_grid_can_be_drawn(
    errors: list[float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, monkeypatch, grid={"norm": ["none"], "optim.lr": [0.01], "seed": [0]})
    monkeypatch.setitem(ERRORS, "none", [errors])
    write_run(tmp_path / "runs", "none", 0.01, 0)
    assert len(report.build(NAME, tmp_path / "runs", tmp_path / "results").figures) == 3


@pytest.mark.usefixtures("no_figures")
def test_an_interrupted_sweep_ends_with_the_same_table(tmp_path: Path) -> None:
    write_all(tmp_path / "whole")
    report.build(NAME, tmp_path / "whole", tmp_path / "a")
    for norm in ERRORS:
        write_run(tmp_path / "parts", norm, 0.1, 1, status="running")
    report.build(NAME, tmp_path / "parts", tmp_path / "b")
    write_run(tmp_path / "parts", "none", 0.1, 0)
    partly = report.build(NAME, tmp_path / "parts", tmp_path / "b")
    assert partly.text != report.build(NAME, tmp_path / "whole", tmp_path / "a").text
    write_all(tmp_path / "parts", seconds=99.0, stack=["alone"])
    report.build(NAME, tmp_path / "parts", tmp_path / "b")
    one, other = contents(tmp_path / "a" / NAME), contents(tmp_path / "b" / NAME)
    assert one["table.csv"] == other["table.csv"]
    assert one["trajectories.csv"] == other["trajectories.csv"]
    assert one["runs.csv"] != other["runs.csv"], "the time is told there"


@pytest.mark.usefixtures("no_figures")
def test_what_is_not_measured_is_pending_and_says_how(tmp_path: Path) -> None:
    for lr in LRS:
        for seed in SEEDS:
            write_run(tmp_path / "runs", "none", lr, seed)
    text = report.build(NAME, tmp_path / "runs", tmp_path / "results").text
    row = next(line for line in text.splitlines() if line.startswith("weight_norm "))
    assert "pending" in row
    assert not re.search(r"\d\.\d", row)
    assert "weight_norm, 0 of 9 runs done: python -m wn.train +experiment=robust norm=weight_norm" in text
    page_text = (tmp_path / "results" / "README.md").read_text()
    assert "pending" in page_text
    assert "9 of 18 runs done" in page_text


@pytest.mark.usefixtures("no_figures")
def test_nothing_done_yet_writes_no_rows(tmp_path: Path) -> None:
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    assert "pending" in built.text
    assert set(contents(tmp_path / "results")) == {"README.md"}


def test_every_preset_has_its_own_look() -> None:
    assert set(figures.STYLE) == set(PRESETS)
    looks = [(style["marker"], style["color"]) for style in figures.STYLE.values()]
    for part in zip(*looks, strict=True):
        assert len(set(part)) == len(looks)


def test_committed_results_are_those_of_the_committed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "FOLDER", ROOT / "experiments")
    committed = ROOT / "results"
    names = [name for name in experiments.names() if (committed / name / collect.RUNS).exists()]
    if not names:
        pytest.skip("no results are committed yet")
    results = tmp_path / "results"
    for name in names:
        (results / name).mkdir(parents=True)
        for file in (collect.RUNS, collect.SERIES[experiments.load(name).report].file):
            (results / name / file).write_bytes((committed / name / file).read_bytes())
        if (committed / name / collect.IMAGES).exists():
            shutil.copytree(committed / name / collect.IMAGES, results / name / collect.IMAGES)
    front_page = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(re.sub(r"(?s)(report -->\n).*?(<!-- end)", r"\1\2", front_page))
    shutil.copytree(committed / "bench", results / "bench", ignore=shutil.ignore_patterns("*.png"))
    for name in names:
        report.build(name, tmp_path / "no_runs", results)
    assert (tmp_path / "README.md").read_text() == front_page, "README.md: stale; run `python -m wn.report`"
    locked = re.search(r"^matplotlib==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    kinds = {".csv", ".md"}
    if locked and version("matplotlib") == locked[1]:  # another version draws other bytes
        kinds.add(".svg")
    made = {name: data for name, data in contents(results).items() if Path(name).suffix in kinds}
    for name, data in made.items():
        assert (committed / name).read_bytes() == data, f"{name}: stale; run `python -m wn.report`"


# The command line ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    assert main(folders) == 2
    assert "no run of an experiment is done yet" in capsys.readouterr().err
    assert main(["robst", *folders]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'robust'?" in error
    assert error.count("\n") == 1
    write_all(tmp_path / "runs")
    assert main(folders) == 0
    assert "5.00 ± 2.48" in capsys.readouterr().out
    assert main([NAME, *folders]) == 0
    assert str(tmp_path / "results" / "README.md") in capsys.readouterr().out


def test_status(experiment: Experiment, tmp_path: Path) -> None:
    for seed in SEEDS:
        write_run(tmp_path / "runs", "none", 1.0, seed, seconds=60.0)  # seed 0 diverged
    write_run(tmp_path / "runs", "none", 0.1, 0, status="running")
    write_run(tmp_path / "runs", "none", 0.1, 1, status="failed")
    heading, line = status(tmp_path / "runs", tmp_path / "results").splitlines()
    assert " ".join(heading.split()) == "experiment runs done diverged running failed missing rest"
    assert line.split() == [NAME, "18", "3", "1", "1", "1", "13", "15.0", "min"]
    assert status(tmp_path / "nothing", tmp_path / "results").splitlines()[1].endswith("unknown")


def test_expected_cost_is_that_of_the_same_norm_where_known(experiment: Experiment, tmp_path: Path) -> None:
    write_run(tmp_path, "none", 0.1, 0, seconds=10.0)
    write_run(tmp_path, "none", 0.1, 1, seconds=30.0)
    write_run(tmp_path, "weight_norm", 0.1, 0, seconds=80.0)
    runs = collect.merge(experiment, collect.local_records(experiment, tmp_path), Path("nothing")).runs
    assert expected_seconds(runs, ["none", "none", "weight_norm", "batch_norm"]) == 20 + 20 + 80 + 40
    assert expected_seconds(runs, []) == 0
    assert expected_seconds(runs[:0], ["none"]) is None


def test_imports_are_light() -> None:
    code = """
import sys, wn.report
assert not {"pandas", "matplotlib", "scipy"} & set(sys.modules)
import wn.report.__main__, wn.report.learning_curves, wn.report.page, wn.report.status
assert not {"torch", "hydra", "wandb", "matplotlib.pyplot"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_markdown_has_as_many_cells_in_every_row(experiment: Experiment, tmp_path: Path) -> None:
    write_all(tmp_path)
    rows = collect.merge(experiment, collect.local_records(experiment, tmp_path), Path("nothing"))
    lines = page.markdown(statistics.table(rows.runs, experiment), experiment).splitlines()
    assert len(lines) == 2 + len(ERRORS)
    assert {line.count("|") for line in lines} == {len(robustness.headings(measures.of(experiment))) + 1}
