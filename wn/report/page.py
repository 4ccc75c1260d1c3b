"""Numbers -> words: the table for a terminal and in Markdown, and ``results/README.md``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wn import experiments
from wn.experiments import Experiment
from wn.records import write_atomically
from wn.report import collect, statistics

HEADINGS = {
    "norm": "norm",
    "best_lr": "best lr",
    "test_error": "test error %",
    "n": "n",
    "p_vs_none": "p vs none",
    "sensitivity": "S (nats)",
    "width_1pp": "width +1pp",
    "width_x1.5": "width ×1.5",
    "largest_stable_lr": "largest stable lr",
    "diverged": "diverged",
}

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


def command(experiment: Experiment, norm: str | None = None) -> str:
    """What to type to train the experiment's runs, or those of one norm; finished ones are skipped."""
    return f"python -m wn.train +experiment={experiment.name}" + (f" norm={norm}" if norm else "")


def display(table: Any, experiment: Experiment) -> list[list[str]]:
    """The table as text: the headings, then a row per norm."""
    lrs = [float(lr) for lr in experiment.grid["optim.lr"]]
    rows = [list(HEADINGS.values())]
    for row in table.to_dict("records"):
        cells = {
            "norm": row["norm"],
            "best_lr": _lr(row["best_lr"]) + (" (edge)" if row["best_lr"] in (min(lrs), max(lrs)) else ""),
            "test_error": _interval(100 * row["test_error"], 100 * row["test_error_half_width"], 2),
            "n": str(row["n"]),
            "p_vs_none": _p(row["p_vs_none"]),
            "sensitivity": _interval(row["sensitivity"], row["sensitivity_half_width"], 3),
            "width_1pp": _width(row["width_1pp"], row["width_1pp_open"]),
            "width_x1.5": _width(row["width_x1.5"], row["width_x1.5_open"]),
            "largest_stable_lr": _open(row["largest_stable_lr"] == max(lrs)) + _lr(row["largest_stable_lr"]),
            "diverged": f"{row['diverged']}/{row['runs']}",
        }
        if not row["n"]:
            cells |= dict.fromkeys(set(HEADINGS) - {"norm", "n", "diverged"}, "pending")
        rows.append([cells[key] for key in HEADINGS])
    return rows


def text(table: Any, experiment: Experiment) -> str:
    """The table for a terminal, with the commands of what is pending."""
    unfinished = (f"{what}: {how}" for what, how in _unfinished(table, experiment))
    return "\n".join([aligned(display(table, experiment)), *unfinished])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns: the first flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def markdown(table: Any, experiment: Experiment) -> str:
    """The table in Markdown, with the commands of what is pending."""
    heading, *rows = display(table, experiment)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (heading, rule, *rows)]
    unfinished = [f"- {what}: `{how}`" for what, how in _unfinished(table, experiment)]
    return "\n".join([*lines, "", *unfinished]).rstrip() + "\n"


def write_tables(table: Any, experiment: Experiment, folder: Path) -> None:
    """Write ``table.csv`` and ``table.md``."""
    collect.write_csv(table, folder / "table.csv")
    write_atomically(folder / "table.md", markdown(table, experiment).encode())


def write_readme(results_dir: Path) -> None:
    """Write ``results/README.md`` from the committed rows of all experiments."""
    parts = ["# Results\n\nGenerated by `python -m wn.report` from the rows beside it; not edited by hand.\n"]
    parts += [section(experiments.load(name), results_dir) for name in experiments.names()]
    results_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(results_dir / "README.md", "\n".join([*parts, GUIDE]).encode())


def write_front_page(readme: Path, results_dir: Path) -> None:
    """Renew the tables between the markers of the project's ``README.md``, of complete experiments alone."""
    if not readme.exists():
        return
    page = readme.read_text()
    for name in experiments.names():
        begin, end = f"<!-- begin {name}: written by python -m wn.report -->\n", f"<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        if found and end in rest:
            experiment = experiments.load(name)
            table = statistics.table(collect.read(experiment, results_dir / name).runs, experiment)
            if (table["runs"] == table["planned"]).all():
                page = before + begin + markdown(table, experiment) + end + rest.partition(end)[2]
    if page != readme.read_text():
        write_atomically(readme, page.encode())


def section(experiment: Experiment, results_dir: Path) -> str:
    """What the page says of one experiment."""
    statistics.check(experiment)
    runs = collect.read(experiment, results_dir / experiment.name).runs
    parts = [
        f"## {experiment.title}",
        f"Claim examined: {experiment.claim}",
        f"```\n{command(experiment)}\npython -m wn.report {experiment.name}\n```",
        markdown(statistics.table(runs, experiment), experiment).rstrip(),
    ]
    if len(runs):
        pictures = {
            "error": "Final validation error against learning rate, per norm",
            "loss": "Final validation loss against learning rate, per norm",
            "trajectories": "Norm of the weights, gain, effective learning rate and relative update by epoch",
        }
        parts += [f"![{alt}]({experiment.name}/{name}.svg)" for name, alt in pictures.items()]
        parts.append(_origin(runs, experiment))
    return "\n\n".join(parts) + "\n"


def _origin(runs: Any, experiment: Experiment) -> str:
    """Which runs, made where and by what."""
    seeds = runs["seed"].nunique()
    commits = {f"{row['commit'][:10]}{_DIRTY * (row['dirty'] is True)}" for row in _with_commit(runs)}
    facts = {
        "device": set(runs["device"].dropna()),
        "precision": set(runs["precision"].dropna()),
        "torch": set(runs["torch"].dropna()),
        "commit": commits,
    }
    words = [f"{name} {', '.join(sorted(values)) or 'unknown'}" for name, values in facts.items()]
    counts = f"{len(runs)} of {experiment.size} runs done, {seeds} seed{'s' * (seeds > 1)}"
    rows = f"every run is a row of [runs.csv]({experiment.name}/{collect.RUNS})"
    return "; ".join([counts, *words, rows]) + "."


_DIRTY = " (with uncommitted changes)"


def _with_commit(runs: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = runs[runs["commit"].notna()].to_dict("records")
    return rows


def _unfinished(table: Any, experiment: Experiment) -> list[tuple[str, str]]:
    """Every norm with runs still to be done, or all in one, and the command that does them."""
    rows = table[table["runs"] < table["planned"]].to_dict("records")
    if len(rows) == len(table):
        done = f"{table['runs'].sum()} of {table['planned'].sum()} runs done"
        return [(done, command(experiment))]
    return [
        (f"{row['norm']}, {row['runs']} of {row['planned']} runs done", command(experiment, row["norm"]))
        for row in rows
    ]


def _lr(lr: float) -> str:
    return "–" if np.isnan(lr) else f"{lr:g}"


def _interval(mean: float, half_width: float, digits: int) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f} ± {'n/a' if np.isnan(half_width) else f'{half_width:.{digits}f}'}"


def _p(p: float) -> str:
    if np.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _open(is_open: bool) -> str:
    return "≥ " if is_open else ""


def _width(decades: float, is_open: Any) -> str:
    return "–" if np.isnan(decades) else f"{_open(is_open is True)}{decades:.2f}"
