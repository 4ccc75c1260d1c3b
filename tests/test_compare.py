"""The report card: which runs it trains, what it says, and that it is fair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from report_cases import SWEEP, declare, p_of, rows_of, write_sweep

from wn import compare, experiments, plugins
from wn.report.card import __main__ as card
from wn.report.card import families, words
from wn.report.statistics import Estimate, holm

FIXED = {"trainer.epochs": 2, "trainer.batch_size": 300, "trainer.device": "cpu", "trainer.progress": False}
NORMS = ["none", "batch_norm", "weight_norm"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two families in small, and a place for committed rows."""
    (tmp_path / "experiments/compare").mkdir(parents=True)
    for name, model in (("mlp", {"model": "mlp"}), ("mlp_vae", {"model": "mlp_vae", "trainer.images": 0})):
        fixed = {**FIXED, **model, "model.widths": [4]} | (
            {"trainer.iwae_samples": 1} if "vae" in name else {}
        )
        grid = {"norm": NORMS, "optim.lr": [0.01, 0.1, 1e6], "seed": [0, 1]}
        tree = {"title": f"The {name}", "claim": "c", "fixed": fixed, "grid": grid}
        (tmp_path / f"experiments/compare/{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.setattr(experiments, "FOLDER", tmp_path / "experiments")
    monkeypatch.setattr(families, "RESULTS", tmp_path / "results/compare")
    monkeypatch.setattr(compare, "FAMILIES", ("mlp_vae", "mlp"))
    monkeypatch.setattr(compare, "ROUNDS", 2)
    monkeypatch.setattr(compare, "make_page", card.main)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    status = compare.main([*arguments, "--families", "mlp_vae,mlp"])
    plugins.load([])
    return status


def trained(folder: Path) -> dict[str, int]:
    found = [json.loads(path.read_text()) for path in folder.glob("runs/compare/*/*/record.json")]
    return dict(pd.Series([record["norm"] for record in found]).value_counts())


def test_committed_rows_are_trained_once_and_a_users_norm_alone_after_that(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--publish") == 0
    assert trained(small) == dict.fromkeys(NORMS, 12)
    committed = {path: path.read_bytes() for path in small.glob("results/compare/*/*.csv")}
    assert {str(path.relative_to(small / "results/compare")) for path in committed} == {
        f"{family}/{name}.csv" for family in ("mlp", "mlp_vae") for name in ("runs", "curves")
    }
    for path in sorted(small.glob("runs/compare/*/*/*"), reverse=True):
        path.unlink()
    (small / "own.py").write_text(
        "from wn import plugins\nfrom wn.norm import NormalizedLayer\n"
        "plugins.norm('mine')(type('Mine', (NormalizedLayer,), {}))\n"
    )
    capsys.readouterr()
    assert run(str(small / "own.py"), "optim.lr_gain_cap=0.1") == 0
    assert trained(small) == {"mine": 12}
    assert {path: path.read_bytes() for path in committed} == committed
    page = (small / "runs/compare/mine_optim.lr_gain_cap=0.1/page.md").read_text(encoding="utf-8")
    title, *rest = page.splitlines()
    assert title == "# mine optim.lr_gain_cap=0.1: report card"
    assert rest[1].startswith("`mine optim.lr_gain_cap=0.1` beside none, batch_norm, weight_norm, on small")
    assert rest[3].startswith("- ")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    one = ["norm", "---", "**mine optim.lr_gain_cap=0.1**", *NORMS]
    assert (
        rows
        == ["difference, at the best lr of each, to", "---", "MLP, test error %", "VAE, test ELBO (nats)"]
        + one * 2
    )
    assert "Made by `python -m wn.compare own.py optim.lr_gain_cap=0.1`, which trains" in page
    assert "`own.py`, SHA-256" in page
    assert "uncommitted" not in page
    for name in ("metric", "trajectories"):
        assert (small / f"runs/compare/mine_optim.lr_gain_cap=0.1/{name}.svg").exists()
    assert str(small) not in page


def test_a_norm_is_not_compared_with_itself_and_a_missing_baseline_is_trained(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = small / "results/compare/mlp/runs.csv"  # of other settings than now
    stale.parent.mkdir(parents=True)
    stale.write_text("run_id,status\n0123456789ab,finished\n")
    assert run("weight_norm") == 0
    assert (
        "no committed rows for mlp_vae, mlp: the four others are trained as well" in capsys.readouterr().out
    )
    page = (small / "runs/compare/weight_norm/page.md").read_text(encoding="utf-8")
    assert page.count("| **weight_norm** |") == 2
    assert page.count("| weight_norm |") == 0


def test_every_norm_has_the_same_learning_rates_and_seeds() -> None:
    """Of the committed families: the grid is the norm's own too."""
    for family in compare.FAMILIES:
        places = {"runs_dir": "runs", "experiment_name": family}
        experiment = experiments.load(f"compare/{family}")
        grids: dict[str, set[tuple[float, int]]] = {}
        for one in experiment.runs(places):
            grids.setdefault(one.config.norm.label, set()).add((one.config.optim.lr, one.config.seed))
        assert list(grids) == ["none", "batch_norm", "weight_norm", "layer_norm"]
        assert len(set(map(frozenset, grids.values()))) == 1
        assert {seed for _, seed in grids["none"]} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["weight_norm", "optim.lr=0.1"], "optim.lr=0.1: one norm and one optimiser"),
        (["weight_norm", "model.widths=[3]"], "model.widths=[3]: one norm and one optimiser"),
        (["weight_norm", "seed=3"], "seed=3: one norm"),
        (["norm=[none,weight_norm]"], "norm=['none', 'weight_norm']: one norm"),
        (["wight_norm"], "experiments/compare/mlp_vae.yaml: norm=wight_norm: no such preset; did you mean"),
        (["none", "--families", "cnn"], "--families cnn: known are"),
        (["none", "optim.momentun=0"], "experiments/compare/mlp_vae.yaml: optim.momentun: unknown key"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_trained(
    small: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--families", "mlp_vae,mlp", *arguments]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"error: {line}")
    assert found.count("\n") == 1
    assert not trained(small)


def test_images_that_are_not_at_hand_leave_their_family_out(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((small / "experiments/compare/mlp.yaml").read_text())
    tree["fixed"] |= {"data": "cifar10", "data.whiten": False}
    (small / "experiments/compare/convnet.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(compare, "FAMILIES", ("convnet", "mlp"))
    settings = {"norm": "none"}
    plans, notes = compare._plans(["convnet", "mlp"], settings, small / "runs")
    assert list(plans) == ["mlp"]
    assert notes == ["The ConvNet is left out: its images were not at hand."]  # the page names no folder
    told = capsys.readouterr().out
    assert told.startswith("The ConvNet is left out: data.root=data: no complete CIFAR10 there")


# Numbers and words

ALL = compare.FAMILIES, False, False


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((["/home/me/own.py", "runs_dir=/tmp/a"], *ALL), "own.py"),
        ((["plugins=[/opt/a.py, /home/me/b.py]", "norm=y"], *ALL), "plugins=[a.py,b.py] norm=y"),
        ((["plugins=../../me/a.py", "norm=y"], *ALL), "plugins=a.py norm=y"),
        ((["none"], ["mlp", "vae"], True, False), "none --families mlp,vae --baselines"),
        ((["none"], compare.FAMILIES, True, True), "none --publish"),
    ],
)
def test_the_command_on_the_page_makes_the_page(arguments: tuple[Any, ...], shown: str) -> None:
    assert compare._command(*arguments) == f"python -m wn.compare {shown}"


def test_holm_is_the_step_down_by_hand() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(5)
        order, last = sorted(range(5), key=lambda i: p[i]), 0.0
        expected = np.empty(5)
        for rank, i in enumerate(order):
            last = max(last, min(1.0, (5 - rank) * p[i]))
            expected[i] = last
        np.testing.assert_allclose(holm(p), expected)
    np.testing.assert_array_equal(holm([np.nan, 0.01, np.nan]), [np.nan, 0.01, np.nan])
    assert holm([]).size == 0


def test_the_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `none` in question and weight norm: test errors in %, at 0.1 each, are 4, 5, 6 and 3, 2, 4."""
    plan = declare(tmp_path, monkeypatch, SWEEP)
    write_sweep(tmp_path, plan)
    told = {"step_ratios": {"": [1.1, 1.3], "weight_norm": [2.0, 2.0], "none": [9.0]}}
    mine, other = families._lines(plan, rows_of(plan, tmp_path), told)
    assert (mine["norm"], mine["lr"], other["lr"]) == ("none", 0.1, 0.1)
    assert (mine["difference"].n, other["difference"].n) == (0, 3)
    assert other["difference"].mean == pytest.approx(2)  # 1, 3, 2: mine less the other's
    assert other["difference"].half_width == pytest.approx(4.302653 / 3**0.5)
    assert np.isnan(mine["p"])
    assert other["p"] == pytest.approx(p_of([1, 3, 2]))
    assert (mine["step"], other["step"]) == (pytest.approx(1.2), 2)
    # Up to 4%, a point above the best: a third and half a decade around 0.1, a half and two thirds, none.
    assert other["width"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 2 / 3) / 3)
    assert not other["width_open"]


def family(mine: dict[str, Any], other: dict[str, Any], key: str = "error") -> Any:
    usual = {"norm": "other", "n": 3, "runs": 6, "diverged": 0, "sensitivity": 1.0, "edge": False}
    usual |= {
        "sensitivity_half_width": 0.1,
        "largest_stable_lr": 1.0,
        "p": np.nan,
        "sensitivity_p": np.nan,
        "step": 1.0,
    }
    usual |= {"step_half_width": 0.01, "difference": Estimate(-1.0, 0.5, 3)}
    plan = type("Plan", (), {"metric": type("Metric", (), {"key": key})})
    return families.Family("mlp", plan, None, [usual | {"lr": 0.1} | mine, usual | other], {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mine", "other", "sentence"),
    [
        (
            {},
            {"p": 0.01},
            "**MLP: better than other** at the best rate of each (1.00 ± 0.50 points, p 0.010).",
        ),
        ({}, {"p": 0.01, "difference": Estimate(1.0, 0.5, 3)}, "**MLP: worse than other** at the best rate"),
        (
            {},
            {"p": 0.06},
            "Best metric: nowhere a significant difference to another; n = 3 shows only large ones.",
        ),
        (
            {"sensitivity": 0.8},
            {"sensitivity_p": 0.04},
            "MLP: less sensitive to the learning rate (mean regret S 0.80 nats) than other (1.00 nats).",
        ),
        ({"sensitivity": 1.2}, {"sensitivity_p": 0.04}, "MLP: more sensitive to the learning rate"),
        ({"largest_stable_lr": 0.3}, {}, "MLP: the first to diverge, above a learning rate of 0.3."),
        ({"edge": True}, {}, "MLP: its best learning rate, 0.1, is the grid's edge"),
        ({"diverged": 6}, {}, "**MLP: every run diverged.**"),
        ({"lr": np.nan}, {}, "**MLP: some seed diverged at every learning rate**, so that none is its best."),
        (
            {},
            {"difference": Estimate(np.nan, np.nan, 0)},
            "Best metric: not compared, as this norm, or every",
        ),
        ({"step": 1.2}, {}, "A step takes longer than with plain weights, by a factor of 1.20 (MLP)."),
    ],
)
def test_what_stands_out_follows_from_the_numbers(
    mine: dict[str, Any], other: dict[str, Any], sentence: str
) -> None:
    said = words.standing_out([family(mine, other)])
    assert any(one.startswith(sentence) for one in said), said
    quiet = words.standing_out([family({}, {})])
    assert len(quiet) == 1


def test_a_higher_bound_is_better() -> None:
    """An error is better the lower."""
    for mean, word in ((1.0, "better"), (-1.0, "worse")):
        (said,) = words.standing_out([family({}, {"p": 0.01, "difference": Estimate(mean, 0.5, 3)}, "loss")])
        assert said.startswith(
            f"**MLP: {word} than other** at the best rate of each (1.00 ± 0.50 nats, p 0.0"
        )
