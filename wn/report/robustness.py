"""The report of a learning-rate sweep: a row per norm, at the learning rate that validation chose.

The numbers are made in :mod:`wn.report.statistics`, the figures in :mod:`wn.report.figures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wn.experiments import Experiment
from wn.report import measures, statistics
from wn.report.measures import Measure
from wn.report.words import command, interval, learning_rate, probability

GUIDE = """\
## How to read the tables

- **best lr**: lowest mean validation error of the final epoch over the seeds; ties by validation loss;
  never a learning rate at which a seed diverged. *(edge)*: the first or last of the grid, so a better one
  may lie beyond.
- **test error %**: of the final epoch at the best lr, mean ± half-width of the 95% Student interval over n
  seeds. The test set is read at no other learning rate.
- **p vs none**: two-sided paired t test of these test errors against those of `none`, by seed; not
  corrected for the number of rows.
- **S**: mean over the grid of min(final, initial) validation loss, less the best of these, per seed; mean ±
  the same interval. What a learning rate drawn blindly from the grid costs; lower is better. A diverged run
  counts at its initial loss.
- **width**: decades of learning rate at which the mean validation error is within one percentage point
  (+1pp) or a factor of 1.5 (×1.5) of this norm's best; interpolated linearly over log(lr), all stretches
  added up. A learning rate at which a seed diverged is outside. ≥: the range reaches an end of the grid.
- **largest stable lr**: the largest at which no seed diverged. A net that dies and stays at chance with a
  finite loss has not diverged: the widths tell. **diverged**: of the runs that are done.
- **n/a**: an interval needs two seeds. **–**: not defined. A seed counts once its run at every learning
  rate is done; `pending`: no seed counts yet.
"""

LOSS_GUIDE = """\
## How to read the tables of sweeps by bound

Of autoencoders, which have no error. All is as above, but for:

- **best lr**: lowest mean validation loss, minus the variational lower bound.
- **test bound**: the mean over the test set, in nats an image, one draw of the latents each; higher is
  better. **p vs none**: of these.
- **width**: decades of learning rate at which the mean validation loss is within 1 nat, and within 3 nats, of
  this norm's best.
"""

PICTURES = {
    "error": "Final validation error against learning rate, per norm",
    "loss": "Final validation loss against learning rate, per norm",
    "trajectories": "Norm of the weights, gain, effective learning rate and relative update by epoch",
}


def pictures(experiment: Experiment) -> dict[str, str]:
    """The figures, and what to say of each where it cannot be seen."""
    return {name: PICTURES[name] for name in (*measures.of(experiment).drawn, "trajectories")}


def chart(experiment: Experiment) -> tuple[str, str, str]:
    """Columns of :func:`curves` that a chart shows: x, y, and what names a line."""
    return "lr", experiment.measure, "norm"


def guides(experiment: Experiment) -> list[str]:
    """How to read the table."""
    return [GUIDE, *([LOSS_GUIDE] if experiment.measure == "loss" else [])]


def check(experiment: Experiment) -> None:
    """See that the experiment is one that this report can show.

    Raises:
        UserError: it is not.
    """
    statistics.check(experiment)


def table(rows: Any, experiment: Experiment) -> Any:
    """See :func:`wn.report.statistics.table`."""
    return statistics.table(rows.runs, experiment)


def curves(rows: Any, experiment: Experiment) -> Any:
    """See :func:`wn.report.statistics.curves`."""
    return statistics.curves(rows.runs, experiment)


def draw(experiment: Experiment, table: Any, rows: Any, folder: Path) -> list[Path]:
    """See :func:`wn.report.figures.draw`."""
    from wn.report import figures

    return figures.draw(experiment, table, curves(rows, experiment), rows, folder)


def on_front_page(table: Any) -> bool:
    """Whether the project's README shows the table: once it is complete."""
    return bool((table["runs"] == table["planned"]).all())


def headings(measure: Measure) -> dict[str, str]:
    """The columns that are shown, and what stands above them."""
    return {
        "norm": "norm",
        "best_lr": "best lr",
        measure.test: measure.heading,
        "n": "n",
        "p_vs_none": "p vs none",
        "sensitivity": "S (nats)",
        **{name: heading for name, (heading, _) in measure.widths.items()},
        "largest_stable_lr": "largest stable lr",
        "diverged": "diverged",
    }


def display(table: Any, experiment: Experiment) -> list[list[list[str]]]:
    """The tables as text, here one: the headings, then a row per norm."""
    measure = measures.of(experiment)
    lrs = [float(lr) for lr in experiment.grid["optim.lr"]]
    shown = headings(measure)
    rows = [list(shown.values())]
    for row in table.to_dict("records"):
        test, half_width = measure.unit * row[measure.test], row[f"{measure.test}_half_width"]
        cells = {
            "norm": row["norm"],
            "best_lr": learning_rate(row["best_lr"])
            + (" (edge)" if row["best_lr"] in (min(lrs), max(lrs)) else ""),
            measure.test: interval(test, abs(measure.unit) * half_width, 2),
            "n": str(row["n"]),
            "p_vs_none": probability(row["p_vs_none"]),
            "sensitivity": interval(row["sensitivity"], row["sensitivity_half_width"], 3),
            **{name: _width(row[name], row[f"{name}_open"]) for name in measure.widths},
            "largest_stable_lr": _open(row["largest_stable_lr"] == max(lrs))
            + learning_rate(row["largest_stable_lr"]),
            "diverged": f"{row['diverged']}/{row['runs']}",
        }
        if not row["n"]:
            cells |= dict.fromkeys(set(shown) - {"norm", "n", "diverged"}, "pending")
        rows.append([cells[key] for key in shown])
    return [rows]


def unfinished(table: Any, experiment: Experiment) -> list[tuple[str, str]]:
    """Every norm with runs still to be done, or all in one, and the command that does them."""
    rows = table[table["runs"] < table["planned"]].to_dict("records")
    if len(rows) == len(table):
        done = f"{table['runs'].sum()} of {table['planned'].sum()} runs done"
        return [(done, command(experiment))]
    return [
        (f"{row['norm']}, {row['runs']} of {row['planned']} runs done", command(experiment, row["norm"]))
        for row in rows
    ]


def _open(is_open: bool) -> str:
    return "≥ " if is_open else ""


def _width(decades: float, is_open: Any) -> str:
    return "–" if np.isnan(decades) else f"{_open(is_open is True)}{decades:.2f}"
