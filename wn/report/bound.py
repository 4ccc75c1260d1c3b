"""The report of a table of variational bounds: a line per row and learning rate, beside the paper's figure 3.

The numbers are made in :mod:`wn.report.bound_lines`, the figures in :mod:`wn.report.bound_curves`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from wn import experiments
from wn.config import UserError
from wn.experiments import Experiment, Point
from wn.report.bound_lines import BASELINE, EPOCHS, published, scale_of
from wn.report.bound_lines import curves as curves
from wn.report.bound_lines import table as table
from wn.report.classification import unfinished as unfinished
from wn.report.words import interval, is_pending, lr_of, probability, progress

PICTURES = {
    "bound": "Variational bound on the test set by epoch, over the published curves",
    "parts": "Reconstruction, divergence and training bound by epoch",
}

GUIDE = """\
## How to read the tables of bounds

- **test bound**: the variational lower bound on the log likelihood of a test image, in nats, one draw of the
  latents each; higher is better. Of the final epoch and, where the optimiser averages, of the averaged
  parameters; mean ± half-width of the 95% Student interval over n seeds. **sd**: over these seeds; the paper
  draws bars without saying which. A run that diverged has no bound and is counted in **status**.
- **paper**: read from the curve of figure 3 at the final epoch, where the curve has a point.
- **IW bound**: the importance-weighted bound with k draws of the latents, closer to the log likelihood.
- **reconstruction**, **KL**: E log p(x given z) and the divergence from the prior; their difference is the
  bound.
- **bits/dim**: of bytes, minus the log probability of an image by D ln 2, with D numbers an image. The nats
  beside it are those of a density of images from 0 to 1, D ln 256 more, as the paper's positive ones must be.
- **above normal**: the mean over the seeds of the difference to `normal`'s test bound. **p**: of the paired
  t test of that, two-sided; not corrected for the number of rows.
- **by epoch**: our mean less the published curve; our sd and, in brackets, the bar that the paper draws; how
  far a row is above `normal` and, in brackets, how far it is in the paper.
- **training bound**, in the figure: the mean over an epoch of what each step saw before its update.
- **Pictures**, of the first finished seed: test images and what became of each, by turns; draws of the prior.
- **n/a**: an interval and a standard deviation need two seeds. **–**: not defined. `pending`: not measured
  yet; the command is below the table.
"""


def pictures(experiment: Experiment) -> dict[str, str]:
    """The figures, and what to say of each where it cannot be seen."""
    return PICTURES


def chart(experiment: Experiment) -> tuple[str, str, str]:
    """Columns of :func:`curves` that a chart shows: x, y, and what names a line."""
    return "epoch", "bound", "line"


def guides(experiment: Experiment) -> list[str]:
    """How to read the tables."""
    return [GUIDE]


def check(experiment: Experiment) -> None:
    """See that the experiment is one that this report can show.

    Raises:
        UserError: it is not, or the file of published curves is not well formed.
    """
    experiments.published(experiment)
    needs = {
        "rows": experiment.rows,
        "a model that has a likelihood": experiment.setting("model.likelihood"),
        "trainer.test_every": experiment.setting("trainer.test_every"),
    }
    for what, there in needs.items():
        if not there:
            raise UserError(f"experiments/{experiment.name}.yaml: report bound needs {what}")


def draw(experiment: Experiment, table: Any, rows: Any, folder: Path) -> list[Path]:
    """See :func:`wn.report.bound_curves.draw`."""
    from wn.report import bound_curves

    return bound_curves.draw(experiment, rows, folder)


def on_front_page(table: Any) -> bool:
    """Whether the project's README shows the table: what is not measured says so."""
    return True


def display(table: Any, experiment: Experiment) -> list[list[list[str]]]:
    """The tables as text, each the headings, then its rows; a column that can have no number goes."""
    headings = _headings(experiment)
    hidden = {"paper": table["paper"].isna().all(), "bits_per_dim": math.isnan(scale_of(experiment).bits)}
    shown = [column for column in headings if not hidden.get(column, False)]
    first = [[headings[column] for column in shown]]
    every = table.to_dict("records")
    for facts in every:
        cells = _cells(facts, experiment)
        first.append([cells[column] for column in shown])
    epochs = [epoch for epoch in EPOCHS if epoch <= experiment.setting("trainer.epochs")]
    second = [["row", "lr", "by epoch, nats", *(f"epoch {epoch}" for epoch in epochs)]]
    for facts in every:
        for what, cell in _stories(facts, experiment).items():
            second.append([facts["row"], lr_of(facts), what, *map(cell, epochs)])
    return [first, second] if epochs else [first]


def _headings(experiment: Experiment) -> dict[str, str]:
    images = experiment.setting("trainer.iwae_images")
    some = f", {images} images" if images else ""
    return {
        "row": "row",
        "lr": "lr",
        "n": "n",
        "paper": "paper",
        "test_bound": "test bound (nats)",
        "test_bound_sd": "sd",
        "above_normal": "above normal",
        "p_vs_normal": "p",
        "iwae_bound": f"IW bound, k = {experiment.setting('trainer.iwae_samples')}{some}",
        "reconstruction": "reconstruction",
        "kl": "KL",
        "bits_per_dim": "bits/dim",
        "status": "status",
    }


def _cells(facts: dict[str, Any], experiment: Experiment) -> dict[str, str]:
    """A line as words."""
    digits = scale_of(experiment).digits
    known = {
        "row": facts["row"],
        "lr": lr_of(facts),
        "n": str(facts["n"]),
        "paper": _number(facts["paper"], digits),
        "status": progress(facts),
    }
    if is_pending(facts):
        return dict.fromkeys(_headings(experiment), "pending") | known
    return known | {
        "test_bound": interval(facts["test_bound"], facts["test_bound_half_width"], digits),
        "test_bound_sd": _spread(facts["test_bound_sd"], facts["n"], digits + 1),
        "above_normal": _number(facts["above_normal"], digits, "+"),
        "p_vs_normal": probability(facts["p_vs_normal"]),
        "iwae_bound": interval(facts["iwae_bound"], facts["importance_bound_half_width"], digits),
        "reconstruction": _number(facts["reconstruction"], digits),
        "kl": _number(facts["kl"], digits),
        "bits_per_dim": _number(facts["bits_per_dim"], 3),
    }


def _stories(facts: dict[str, Any], experiment: Experiment) -> Any:
    """The rows of the second table that a line has, by their names: what is said of an epoch."""
    digits, theirs = scale_of(experiment).digits, published(experiment, facts["row"])
    names = [row.name for row in experiment.rows if row.norm == BASELINE]
    normal = published(experiment, names[0]) if names else {}

    def ours(what: str, epoch: int, form: str) -> str:
        number = facts[f"{what}_{epoch}"]
        if is_pending(facts):
            return "pending"
        return "n/a" if what == "sd" and facts["n"] == 1 else _number(number, digits + (what == "sd"), form)

    def gap(epoch: int) -> str:
        return ours("gap", epoch, "+") if epoch in theirs else "–"

    def spread(epoch: int) -> str:
        bar = theirs[epoch].bar if epoch in theirs else math.nan
        return ours("sd", epoch, "") + ("" if math.isnan(bar) else f" ({bar:.{digits + 1}f})")

    def above(epoch: int) -> str:
        published = _difference(theirs.get(epoch), normal.get(epoch))
        there = "" if math.isnan(published) else f" ({published:+.{digits}f})"
        return ours("above_normal", epoch, "+") + there

    stories = {"sd over seeds (bar in the paper)": spread}
    if theirs:
        stories = {"bound less the paper's": gap} | stories
    if names and facts["norm"] != BASELINE:
        stories |= {"above normal (in the paper)": above}
    return stories


def _difference(one: Point | None, other: Point | None) -> float:
    return one.value - other.value if one and other else math.nan


def _number(value: float, digits: int, sign: str = "") -> str:
    return "–" if np.isnan(value) else f"{value:{sign}.{digits}f}"


def _spread(value: float, n: int, digits: int) -> str:
    return "n/a" if n == 1 else _number(value, digits)
