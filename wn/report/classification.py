"""The report of a table of test errors: a line per row and learning rate, beside what others published.

The numbers are made in :mod:`wn.report.lines`, the figures in :mod:`wn.report.learning_curves`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wn import experiments
from wn.config import UserError
from wn.experiments import Experiment
from wn.report.lines import BASELINES, ENOUGH, EPOCHS, chooses_itself
from wn.report.lines import curves as curves
from wn.report.lines import table as table
from wn.report.words import command, interval, is_pending, lr_of, probability, progress

PICTURES = {
    "training_error": "Training error by epoch, all rows",
    "rows": "Training error by epoch, a panel per row",
    "test_error": "Test error of every seed, per row",
}

GUIDE = """\
## How to read the tables of test errors

- **row**: a norm; **lr**: of Adam. *(chosen)*: it had the lowest mean validation error of the final epoch.
  The others are those that the paper names. No learning rate was chosen on test images.
- **test error %**: of the final epoch, mean ± half-width of the 95% Student interval over n seeds; a run that
  diverged has none and is counted in **status**.
- **paper %**: figure 2 of the paper, which gives neither seeds nor intervals. **RMSNorm authors' rerun %**:
  the authors' code, run again by Zhang & Sennrich (RMSNorm, 2019, section 6.4).
- **expected %**: where the mean of three seeds or more should lie, fixed before the runs were made.
- **training error %**: mean over the final epoch of what each step saw before its update, noise and dropout
  on.
- **p vs BN**, **p vs normal**: two-sided paired t test of the test errors, by seed, against that row at its
  learning rate of the same kind; not corrected for the number of rows.
- **training error against the published curve**: the mean over the finished runs, relative to the curve of
  the paper's figure 1 at that epoch, less 1. The aim is within 15%.
- **n/a**: an interval needs two seeds. **–**: not defined. `pending`: not measured yet; the command is below
  the table.
"""


def pictures(experiment: Experiment) -> dict[str, str]:
    """The figures, and what to say of each where it cannot be seen."""
    return PICTURES


def chart(experiment: Experiment) -> tuple[str, str, str]:
    """Columns of :func:`curves` that a chart shows: x, y, and what names a line."""
    return "epoch", "train_error", "line"


def guides(experiment: Experiment) -> list[str]:
    """How to read the tables."""
    return [GUIDE]


def check(experiment: Experiment) -> None:
    """See that the experiment is one that this report can show.

    Raises:
        UserError: it is not, or the file of published curves is not well formed.
    """
    experiments.published(experiment)
    if not experiment.rows:
        raise UserError(f"experiments/{experiment.name}.yaml: report classification needs rows")


def draw(experiment: Experiment, table: Any, rows: Any, folder: Path) -> list[Path]:
    """See :func:`wn.report.learning_curves.draw`."""
    from wn.report import learning_curves

    return learning_curves.draw(experiment, table, curves(rows, experiment), rows.runs, folder)


def on_front_page(table: Any) -> bool:
    """Whether the project's README shows the table: what is not measured says so."""
    return True


HEADINGS = {
    "row": "row",
    "lr": "lr",
    "paper": "paper %",
    "rerun": "RMSNorm authors' rerun %",
    "test_error": "test error %",
    "n": "n",
    "band": "expected %",
    "train_error": "training error %",
    "p_vs_bn": "p vs BN",
    "p_vs_normal": "p vs normal",
    "status": "status",
}

MEASURED = ("test_error", "train_error", *BASELINES)


def display(table: Any, experiment: Experiment) -> list[list[list[str]]]:
    """The tables as text, each the headings, then a row per line; a published column that is empty goes."""
    every = table.to_dict("records")
    known = {"paper": "paper", "rerun": "rerun", "band": "band_low"}
    hidden = {column for column, source in known.items() if table[source].isna().all()}
    shown = [column for column in HEADINGS if column not in hidden]
    first = [[HEADINGS[column] for column in shown]]
    for facts in every:
        cells = _cells(facts, experiment)
        first.append([cells[column] for column in shown])
    if experiment.curves is None:
        return [first]
    theirs = experiments.published(experiment)
    second = [["training error against the published curve", "lr", *(f"epoch {epoch}" for epoch in EPOCHS)]]
    for facts in every:
        if facts["row"] in theirs and not np.isnan(facts["lr"]):
            second.append([facts["row"], lr_of(facts), *(_deviation(facts, epoch) for epoch in EPOCHS)])
    return [first, second]


def _cells(facts: dict[str, Any], experiment: Experiment) -> dict[str, str]:
    """A line as words."""
    cells = {
        "row": facts["row"],
        "lr": lr_of(facts),
        "paper": _percent(facts["paper"]),
        "rerun": _percent(facts["rerun"]),
        "test_error": interval(100 * facts["test_error"], 100 * facts["test_error_half_width"], 2),
        "n": str(facts["n"]),
        "band": _band(facts),
        "train_error": _percent(100 * facts["train_error"]),
        **{column: probability(facts[column]) for column in BASELINES},
        "status": progress(facts),
    }
    return cells | (dict.fromkeys(MEASURED, "pending") if is_pending(facts) else {})


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _band(facts: dict[str, Any]) -> str:
    """The band, and whether the mean is in it once there are seeds enough to say so."""
    low, high = facts["band_low"], facts["band_high"]
    if np.isnan(low):
        return "–"
    verdict = ""
    if facts["n"] >= ENOUGH:
        verdict = ": in" if low <= 100 * facts["test_error"] <= high else ": out"
    return f"{low:.1f} to {high:.1f}{verdict}"


def _deviation(facts: dict[str, Any], epoch: int) -> str:
    if is_pending(facts):
        return "pending"
    value = facts[f"deviation_{epoch}"]
    return "–" if np.isnan(value) else f"{round(100 * value):+d}%"


def unfinished(table: Any, experiment: Experiment) -> list[tuple[str, str]]:
    """What is to be done, row by row or all in one, and the command that does it."""
    counts = table.groupby("row", sort=False).agg(
        norm=("norm", "first"), runs=("runs", "sum"), planned=("planned", "sum")
    )
    rows = counts[counts["runs"] < counts["planned"]]
    if len(rows) == len(counts):
        done = f"{counts['runs'].sum()} of {counts['planned'].sum()} runs done"
        steps = [(done, command(experiment))]
    else:
        steps = [
            (f"{row}, {facts['runs']} of {facts['planned']} runs done", command(experiment, facts["norm"]))
            for row, facts in rows.iterrows()
        ]
    other = experiment.chosen_by
    if other and not chooses_itself(experiment) and table["lr"].isna().any():
        choose = f"python -m wn.train +experiment={other} && python -m wn.report {other}"
        steps.append(("learning rates to be chosen", choose))
    return steps
