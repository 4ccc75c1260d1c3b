"""The table of bounds and its figures, and a sweep judged by its loss, against numbers worked out by hand."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_cases import NAME, contents, declare

from wn import experiments, report
from wn.config import SCHEMA, UserError
from wn.experiments import Experiment
from wn.report import bound, bound_curves, bound_lines, collect, page, robustness, statistics

REPOSITORY = experiments.FOLDER

ROWS: Any = [
    {"name": "normal", "norm": "none_init", "lrs": [0.002]},
    {"name": "WN", "norm": "weight_norm_init", "lrs": [0.002]},
    {"name": "BN", "norm": "batch_norm", "lrs": [0.002]},
]

FIXED = {"model": "conv_vae", "data": "mnist", "trainer.epochs": 20, "trainer.test_every": 10}

BOUNDS: Any = {
    "report": "bound",
    "measure": "loss",
    "fixed": FIXED,
    "grid": {},
    "rows": ROWS,
    "seeds": [0, 1, 2],
    "curves": "paper.txt",
}

NORMAL, OURS = [86.0, 86.4, 86.5], [85.9, 86.1, 86.1]
"""Final test losses of the rows, seed by seed."""


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    made = declare(tmp_path, monkeypatch, **BOUNDS)
    curves = {"normal": [[0, -400, 6], [20, -86.25, 0.2]], "WN": [[0, -400, 6], [20, -86.0, 0.05]]}
    (tmp_path / "experiments" / "paper.txt").write_text(yaml.safe_dump({"curves": curves}))
    return made


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    monkeypatch.setattr(bound_curves, "draw", lambda *_: [])


def write_vae(runs_dir: Path, norm: str, seed: int, end: float | None, **trainer: Any) -> Path:
    """A record of a VAE whose test loss ends as given (None: it diverged); a quarter of it is divergence."""
    lr, model = trainer.pop("lr", 0.002), trainer.pop("model", "conv_vae")
    run_id = hashlib.sha256(f"{norm} {lr} {seed}".encode()).hexdigest()[:12]
    folder = runs_dir / NAME / run_id
    folder.mkdir(parents=True)

    def parts(split: str, loss: float) -> dict[str, float]:
        return {f"{split}_loss": loss, f"{split}_reconstruction": 0.75 * loss, f"{split}_kl": loss / 4}

    final = {} if end is None else parts("train", end - 1) | parts("valid", end) | parts("test", end)
    content = {
        "schema": SCHEMA,
        "run_id": run_id,
        "norm": norm,
        "status": "diverged" if end is None else "finished",
        "config": {
            "model": {"name": model},
            "data": {"name": trainer.pop("data", "mnist")},
            "optim": {"name": "adamax", "lr": lr},
            "trainer": {"epochs": 20, "test_every": 10, "precision": "float32"}
            | {"iwae_samples": 128, "iwae_images": None}
            | trainer,
            "seed": seed,
        },
        "stack": [run_id],
        "provenance": {"commit": "c" * 40, "dirty": False, "device": "CPU", "packages": {"torch": "2.15"}},
        "initial": parts("valid", 60.0),
        "final": final | ({} if end is None else {"test_nll": end - 2}),
        "best": {"epoch": 20, "valid_loss": end},
    }
    metrics = [{"epoch": epoch, "step": epoch} for epoch in range(21)]
    if end is not None:
        for row in metrics[::10]:
            row |= parts("test", end + 5 * (20 - row["epoch"]) / 10) | {"train_loss": end - 1}
        for name in ("reconstructions", "samples"):
            (folder / f"{name}.png").write_bytes(f"{name} of {norm}, seed {seed}".encode())
    (folder / "record.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def write_runs(runs_dir: Path) -> None:
    for seed, (normal, ours) in enumerate(zip(NORMAL, OURS, strict=True)):
        write_vae(runs_dir, "none_init", seed, normal)
        write_vae(runs_dir, "weight_norm_init", seed, ours)


def table_of(experiment: Experiment, runs_dir: Path) -> Any:
    rows = collect.merge(experiment, collect.local_records(experiment, runs_dir), Path("nothing"))
    return page.KINDS[experiment.report].table(rows, experiment)


def shown(experiment: Experiment, runs_dir: Path, key: int = 1) -> dict[Any, dict[str, str]]:
    """The tables as they are shown, a dictionary per row: by row, and in the second by what is told."""
    first, *others = bound.display(table_of(experiment, runs_dir), experiment)
    heading, *lines = first if key == 1 else others[0]
    return {
        line[0] if key == 1 else (line[0], line[2]): dict(zip(heading, line, strict=True)) for line in lines
    }


# The table -------------------------------------------------------------------------------------------


def test_a_line_by_hand(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path)
    lines = {line["row"]: line for line in table_of(experiment, tmp_path).to_dict("records")}
    ours = lines["WN"]
    assert (ours["runs"], ours["planned"], ours["n"], ours["diverged"]) == (3, 3, 3, 0)
    assert ours["test_bound"] == pytest.approx(-258.1 / 3)
    assert ours["test_bound_sd"] == pytest.approx(0.2 / math.sqrt(3))
    assert ours["test_bound_half_width"] == pytest.approx(4.303 * 0.2 / 3, rel=1e-3)
    assert ours["iwae_bound"] == pytest.approx(-258.1 / 3 + 2)
    assert ours["reconstruction"] - ours["kl"] == pytest.approx(ours["test_bound"])
    assert ours["paper"] == -86.0
    difference = np.array([0.1, 0.3, 0.4])
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(3))
    assert ours["above_normal"] == pytest.approx(0.8 / 3)
    assert ours["p_vs_normal"] == pytest.approx(1 - t / math.sqrt(t * t + 2))  # two degrees of freedom
    assert math.isnan(lines["normal"]["p_vs_normal"]), "not against itself"
    cells = shown(experiment, tmp_path)["WN"]
    assert (cells["paper"], cells["test bound (nats)"], cells["sd"]) == ("-86.00", "-86.03 ± 0.29", "0.115")
    assert (cells["above normal"], cells["n"], cells["status"]) == ("+0.27", "3", "done")
    assert cells["IW bound, k = 128"] == "-84.03 ± 0.29"
    assert "bits/dim" not in cells, "of black and white pixels nobody gives them"


def test_by_epoch_beside_the_published_curve(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path)
    cells = {key: row["epoch 20"] for key, row in shown(experiment, tmp_path, key=2).items()}
    gap, spread = "bound less the paper's", "sd over seeds (bar in the paper)"
    assert cells["normal", gap] == "-0.05"  # -86.30 less -86.25
    assert cells["normal", spread] == "0.265 (0.200)"  # of 86.0, 86.4, 86.5: sqrt(0.07)
    assert cells["WN", spread] == "0.115 (0.050)"
    assert cells["WN", "above normal (in the paper)"] == "+0.27 (+0.25)"
    assert (("normal", "above normal (in the paper)") in cells, ("BN", gap) in cells) == (False, False)


def test_only_what_was_measured_and_published_at_an_epoch_is_compared(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(tmp_path)
    paper = {"curves": {"WN": [[10, -91.0], [30, -85.0]]}}  # nothing at 20, between the two
    (tmp_path / "experiments" / "paper.txt").write_text(yaml.safe_dump(paper))
    line = table_of(experiment, tmp_path).set_index("row").loc["WN"]
    assert math.isnan(line["paper"])
    assert math.isnan(line["gap_20"])
    assert line["sd_20"] > 0
    assert math.isnan(line["sd_50"]), "after the last epoch"
    short = declare(tmp_path, monkeypatch, **BOUNDS | {"fixed": FIXED | {"trainer.epochs": 10}})
    assert len(bound.display(bound_lines.table(collect.read(short, tmp_path), short), short)) == 1


def test_bytes_are_told_as_a_density_and_in_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = FIXED | {"model": "resnet_vae", "data": "cifar10", "data.whiten": False}
    made = declare(tmp_path, monkeypatch, **BOUNDS | {"fixed": fixed, "curves": None})
    bits = 3.64
    loss = bits * 3072 * math.log(2)
    folder = write_vae(tmp_path, "none_init", 0, loss, model="resnet_vae", data="cifar10")
    content = json.loads((folder / "record.json").read_text())
    content["config"]["data"]["whiten"] = False
    (folder / "record.json").write_text(json.dumps(content))
    line = table_of(made, tmp_path).set_index("row").loc["normal"]
    assert line["bits_per_dim"] == pytest.approx(bits)
    assert line["test_bound"] == pytest.approx((8 - bits) * 3072 * math.log(2))  # 9284: the paper's is 9277
    assert line["reconstruction"] - line["kl"] == pytest.approx(line["test_bound"])
    cells = shown(made, tmp_path)["normal"]
    assert (cells["bits/dim"], cells["test bound (nats)"], cells["sd"]) == ("3.640", "9284.0 ± n/a", "n/a")
    assert shown(made, tmp_path)["WN"]["bits/dim"] == "pending"


def test_nothing_done_is_pending_beside_the_published_numbers(experiment: Experiment, tmp_path: Path) -> None:
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    assert built.text.endswith(f"0 of 9 runs done: python -m wn.train +experiment={NAME}")
    assert set(contents(tmp_path / "results")) == {"README.md"}
    cells = shown(experiment, tmp_path / "runs")["WN"]
    assert (cells["paper"], cells["test bound (nats)"], cells["status"]) == ("-86.00", "pending", "pending")
    second = shown(experiment, tmp_path / "runs", key=2)
    assert second["WN", "sd over seeds (bar in the paper)"]["epoch 20"] == "pending (0.050)"


def test_a_diverged_run_is_told_and_in_no_mean(experiment: Experiment, tmp_path: Path) -> None:
    write_vae(tmp_path, "batch_norm", 0, None)
    write_vae(tmp_path, "batch_norm", 1, 90.0)
    cells = shown(experiment, tmp_path)["BN"]
    assert (cells["status"], cells["n"]) == ("2 of 3 done, 1 diverged", "1")
    assert (cells["test bound (nats)"], cells["sd"], cells["above normal"]) == ("-90.00 ± n/a", "n/a", "–")


def test_an_importance_weighted_bound_of_other_samples_is_not_in_the_mean(
    experiment: Experiment, tmp_path: Path
) -> None:
    write_vae(tmp_path, "none_init", 0, 86.0)
    write_vae(tmp_path, "none_init", 1, 87.0, iwae_samples=5000)
    write_vae(tmp_path, "none_init", 2, 88.0, iwae_images=1000)
    cells = shown(experiment, tmp_path)["normal"]
    assert (cells["IW bound, k = 128"], cells["n"]) == ("-84.00 ± n/a", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": FIXED | {"model": "mlp"}}, "report bound needs a model that has a likelihood"),
        ({"fixed": FIXED | {"trainer.test_every": 0}}, "report bound needs trainer.test_every"),
        ({"measure": "error"}, "report bound needs measure: loss"),
    ],
)
def test_what_it_cannot_show_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        bound.check(declare(tmp_path, monkeypatch, **BOUNDS | changes))
    assert "\n" not in str(refusal.value)


# The whole -------------------------------------------------------------------------------------------


def test_build_and_build_again_from_the_rows_alone(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    write_vae(tmp_path / "runs", "batch_norm", 0, None)
    built = report.build(NAME, tmp_path / "runs", tmp_path / "results")
    before = contents(tmp_path / "results")
    files = {"runs.csv", "curves.csv", "table.csv", "table.md"}
    files |= {f"{name}.{kind}" for name in bound.PICTURES for kind in ("svg", "png")}
    images = {f"{norm}-{name}.png" for norm in ("none_init", "weight_norm_init") for name in page.PICTURES}
    files |= {f"images/{name}" for name in images}
    assert set(before) == {"README.md"} | {f"{NAME}/{name}" for name in files}
    assert report.build(NAME, tmp_path / "nothing", tmp_path / "results") == built
    assert contents(tmp_path / "results") == before, "without records the pictures stay as well"
    assert before[f"{NAME}/images/none_init-samples.png"] == b"samples of none_init, seed 0"
    assert f"({NAME}/images/none_init-samples.png)" in before["README.md"].decode()
    assert len(before[f"{NAME}/curves.csv"].splitlines()) == 1 + 6 * 2  # epochs 10 and 20 of six runs
    assert built.chart == ("epoch", "bound", "line")
    assert min(point["epoch"] for point in built.curves) > 0, "it is drawn as its logarithm"
    json.dumps([built.curves, built.table], allow_nan=False)


@pytest.mark.usefixtures("no_figures")
def test_pictures_are_of_the_first_finished_seed(tmp_path: Path) -> None:
    write_vae(tmp_path / "a", "none_init", 1, 86.4)
    write_vae(tmp_path / "a", "none_init", 0, None)
    report.build(NAME, tmp_path / "a", tmp_path / "results")
    kept = tmp_path / "results" / NAME / "images" / "none_init-samples.png"
    assert kept.read_bytes() == b"samples of none_init, seed 1"
    write_vae(tmp_path / "b", "none_init", 2, 86.5)
    report.build(NAME, tmp_path / "b", tmp_path / "results")
    assert kept.read_bytes() == b"samples of none_init, seed 1", "another machine's later seed"


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_pictures_shows_none(tmp_path: Path) -> None:
    folder = write_vae(tmp_path / "runs", "none_init", 0, 86.0)
    (folder / "samples.png").unlink()
    report.build(NAME, tmp_path / "runs", tmp_path / "results")
    assert "images/" not in (tmp_path / "results" / "README.md").read_text()


def test_columns_of_runs_are_those_of_the_measure(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = list(collect.run_columns(experiment))
    assert {"test_reconstruction", "test_kl", "test_nll", "best_valid_loss"} < set(own)
    assert not [name for name in own if name.endswith("_error")]
    other = declare(tmp_path, monkeypatch)
    committed = (report.experiments.RESULTS / "lr_robustness_digits" / collect.RUNS).read_text()
    heading = committed.partition("\n")[0].split(",")
    assert list(collect.run_columns(other))[-22:] == heading[-22:], "those of before, in their order"


def test_a_figure_shows_the_late_epochs(experiment: Experiment, tmp_path: Path) -> None:
    write_runs(tmp_path)
    rows = collect.merge(experiment, collect.local_records(experiment, tmp_path), Path("nothing"))
    axes = bound_curves.bound_figure(experiment, bound_lines.each_run(rows, experiment)).axes[0]
    low, high = axes.get_ylim()
    assert -93 < low < -91.5, "not the -400 before training"
    assert -85.9 < high < -85


# A sweep that is judged by its loss ------------------------------------------------------------------

LOSSES: dict[float, list[float | None]] = {
    0.001: [25.0, 26.0],
    0.01: [22.0, 22.4],
    0.1: [23.2, 23.2],
    1.0: [21, None],
}


def test_a_learning_rate_is_chosen_by_the_lowest_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = {"model": "mlp_vae", "data": "digits"}
    grid = {"norm": ["none"], "optim.lr": list(LOSSES), "seed": [0, 1]}
    sweep: Any = {"report": "lr_robustness", "measure": "loss", "fixed": fixed, "grid": grid}
    made = declare(tmp_path, monkeypatch, **sweep)
    for lr, ends in LOSSES.items():
        for seed, end in enumerate(ends):
            write_vae(tmp_path / "runs", "none", seed, end, lr=lr, model="mlp_vae", data="digits")
    (row,) = table_of(made, tmp_path / "runs").to_dict("records")
    assert (row["best_lr"], row["valid_loss"], row["diverged"]) == (0.01, pytest.approx(22.2), 1)
    # means are 25.5, 22.2, 23.2 and diverged: 23.2 is passed at 1/3.3 of a decade below 0.01
    assert row["width_1nat"] == pytest.approx(1 / 3.3 + 1)
    assert row["width_3nats"] == pytest.approx(3 / 3.3 + 1)
    # per seed: mean of 25, 22, 23.2, 21 less 21, and of 26, 22.4, 23.2 and the initial 60 less 22.4
    assert row["sensitivity"] == pytest.approx(((91.2 / 4 - 21) + (131.6 / 4 - 22.4)) / 2)
    heading, line = robustness.display(statistics.table(_runs(made, tmp_path / "runs"), made), made)[0]
    cells = dict(zip(heading, line, strict=True))
    assert cells["test bound (nats)"] == f"-22.20 ± {12.706 * 0.2:.2f}"  # t(0.975, 1) of 22.0 and 22.4
    assert (cells["width 1 nat"], cells["width 3 nats"]) == ("1.30", "1.91")
    assert list(robustness.pictures(made)) == ["loss", "trajectories"]
    assert robustness.chart(made) == ("lr", "loss", "norm")
    assert robustness.guides(made) == [robustness.GUIDE, robustness.LOSS_GUIDE]


def _runs(experiment: Experiment, runs_dir: Path) -> Any:
    return collect.merge(experiment, collect.local_records(experiment, runs_dir), Path("nothing")).runs


# The committed experiments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epochs", "read_off"),
    [
        (
            "vae_mnist",
            [10, 50, 100, 200, 300],
            {
                "normal": [-94.42, -87.30, -86.16, -85.81, -85.83],
                "WN": [-93.97, -87.28, -86.05, -85.41, -85.33],
            },
        ),
        (
            "vae_cifar10",
            [50, 100, 200, 300, 450],
            {"normal": [8307, 8624, 8888, 9023, 9148], "WN": [8549, 8849, 9095, 9196, 9277]},
        ),
    ],
)
def test_published_curves_are_those_of_figure_3(
    name: str, epochs: list[int], read_off: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "FOLDER", REPOSITORY)
    made = experiments.load(name)
    for row, bounds in read_off.items():
        points = bound_lines.published(made, row)
        assert [points[epoch].value for epoch in epochs] == pytest.approx(bounds, rel=1e-4)
        assert math.isnan(points[epochs[-1]].bar) is (name == "vae_cifar10"), "drawn for MNIST alone"
