"""Tables and figures -> pages: for a terminal, beside the records, ``results/README.md``, the front page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wn import experiments
from wn.records import Record, to_json, write_atomically
from wn.report import collect, columns
from wn.report.collect import Rows
from wn.report.plan import Plan, of_experiment
from wn.report.tables import Table, lines_of, table_of

PICTURES = ("reconstructions", "samples")
"""That a VAE leaves; of each row of a list the first finished run's are kept in ``images/``."""

FIGURES = {
    "error": "Final validation error against learning rate",
    "loss": "Final validation loss against learning rate",
    "curves": "Learning curves",
    "rows": "Training error by epoch, a panel per row",
    "parts": "Reconstruction, KL and training ELBO by epoch",
    "seeds": "Test metric of every seed, per row",
    "trajectories": "Norm of the weights, gain, effective learning rate and relative update by epoch",
}
"""In the order of the page."""

Steps = list[tuple[str, str]]
"""What is to be done, and the command that does it."""


def steps_of(plan: Plan, rows: Rows, results_dir: Path) -> Steps:
    """Rows of an experiment with runs still to train, or all in one; learning rates still to be chosen."""
    experiment = plan.experiment
    if experiment is None:
        return []
    command = f"python -m wn.train +experiment={plan.name}"
    done = {group: sum(run_id in rows.runs for run_id in group.configs) for group in plan.groups}
    left = [group for group in plan.groups if done[group] < len(group.configs)]
    steps = [(f"{g.name}, {done[g]} of {len(g.configs)} runs done", f"{command} norm={g.norm}") for g in left]
    if len(left) == len(plan.groups):
        steps = [(f"{sum(done.values())} of {len(plan.group_of)} runs done", command)]
    other = experiment.chosen_by
    if other is None or other == plan.name:
        return steps
    if any(row.chosen is None for row in experiment.rows):
        choose = f"python -m wn.train +experiment={other} && python -m wn.report {other}"
        steps.append(("learning rates to be chosen", choose))
    chooser = of_experiment(other)
    runs = collect.committed(chooser, results_dir / other)[0].runs
    complete = [line for line in lines_of(chooser, runs) if set(line.group.configs) <= set(runs)]
    best = {line.group.norm: line.lr for line in complete}
    for row in experiment.rows:
        found = best.get(row.norm)
        if found is not None and not row.set and row.chosen != found:
            what = f"{row.name}: {other} chooses lr {found:g}, experiments/{plan.name}.yaml says {row.chosen}"
            steps.append((what, f"chosen: {found:g}"))
    return steps


def text(table: Table, steps: Steps) -> str:
    """The table for a terminal, with what is to be known and done."""
    below = [f"{what}: {how}" for what, how in steps]
    return "\n".join([columns.aligned(table.cells()), *table.notes, *below])


def markdown(table: Table, steps: Steps, front: bool = False) -> str:
    """The same as a page has it; the front page has fewer columns."""
    below = [f"- {note}" for note in table.notes] + [f"- {what}: `{how}`" for what, how in steps]
    return "\n".join([columns.in_markdown(table.cells(front)), "", *below]).rstrip() + "\n"


def section(plan: Plan, rows: Rows, table: Table, steps: Steps, folder: Path, at: str) -> str:
    """What a page says of a plan, whose files lie in ``folder``: ``at``, seen from the page."""
    parts = [markdown(table, steps).rstrip()]
    if plan.experiment:
        command = f"python -m wn.train +experiment={plan.name}\npython -m wn.report {plan.name}"
        parts[:0] = [
            f"## {plan.experiment.title}",
            f"Claim examined: {plan.experiment.claim}",
            f"```\n{command}\n```",
        ]
    if not rows.runs:
        return "\n\n".join(parts) + "\n"
    for name, alt in FIGURES.items():
        if (folder / f"{name}{plan.suffix}.svg").exists():
            parts.append(f"![{alt}]({at}{name}{plan.suffix}.svg)")
    images = [["row", *PICTURES]]
    for group in plan.groups:
        files = {name: f"images/{slug(group.name)}-{name}.png" for name in PICTURES}
        if all((folder / file).exists() for file in files.values()):
            shown = (f"![{group.name}: {name}]({at}{file})" for name, file in files.items())
            images.append([group.name, *shown])
    parts += [columns.in_markdown(images)] * (len(images) > 1)
    runs = list(rows.runs.values())
    facts = [f"{len(runs)} of {len(plan.group_of)} runs done, seeds {len({run['seed'] for run in runs})}"]
    for name in ("device", "precision", "torch", "commit"):
        known = {str(run[name]) for run in runs if run.get(name) is not None}
        known = {commit[:10] for commit in known} if name == "commit" else known
        facts.append(f"{name} {', '.join(sorted(known)) or 'unknown'}")
    facts[-1] += " (some with uncommitted changes)" * any(run.get("dirty") is True for run in runs)
    file = f"runs{plan.suffix}.csv"
    return "\n\n".join([*parts, "; ".join([*facts, f"every run is a row of [{file}]({at}{file})"])]) + ".\n"


def copy_pictures(plan: Plan, rows: Rows, records: Mapping[str, Record], folder: Path) -> None:
    """Keep the pictures of each row's first finished run; where that is not local, what is there stays."""
    for group in [] if plan.is_sweep else plan.groups:
        finished = [i for i in group.configs if i in rows.runs and rows.runs[i]["status"] == "finished"]
        for name, path in records[finished[0]].pictures.items() if {*finished[:1]} & {*records} else ():
            (folder / "images").mkdir(exist_ok=True)
            write_atomically(folder / "images" / f"{slug(group.name)}-{name}.png", path.read_bytes())


def slug(name: str) -> str:
    """A row's name as part of a file's."""
    return re.sub(r"\W+", "-", name).strip("-")


def write_local(folder: Path, name: str, parts: Iterable[str], summaries: list[dict[str, Any]]) -> None:
    """Write ``page.md``; and ``points.csv`` and ``summary.json`` for whoever shows the figures elsewhere."""
    head = f"# {name}\n\nWhat each column means: docs/TABLES.md.\n"
    write_atomically(folder / "page.md", "\n".join([head, *parts, ""]).encode("utf-8"))
    points = summaries[0].pop("points")
    collect.write_csv(folder / "points.csv", list(points[0]) if points else [], points)
    figures = [figure for summary in summaries for figure in summary["figures"]]
    told = {**summaries[0], "points": "points.csv", "figures": figures}
    write_atomically(folder / "summary.json", (to_json(told, indent=1) + "\n").encode("utf-8"))


def write_pages(results_dir: Path) -> None:
    """Write ``results/README.md``, and renew the tables between the markers of the project's README."""
    readme = results_dir.parent / "README.md"
    front = before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    parts = [
        "# Results\n\nGenerated by `python -m wn.report --publish` from the rows beside it. What each"
        " column means: [docs/TABLES.md](../docs/TABLES.md).\n"
    ]
    for name in experiments.names():
        plan = of_experiment(name)
        rows, _ = collect.committed(plan, results_dir / name)
        table, steps = table_of(plan, rows.runs), steps_of(plan, rows, results_dir)
        parts.append(section(plan, rows, table, steps, results_dir / name, f"{name}/"))
        begin, end = f"<!-- begin {name}: written by python -m wn.report -->\n", f"<!-- end {name} -->"
        head, found, rest = front.partition(begin)
        if found and end in rest and (not plan.is_sweep or len(rows.runs) == len(plan.group_of)):
            front = head + begin + markdown(table, steps, front=True) + end + rest.partition(end)[2]
    pages = sorted((results_dir / "bench").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for path in pages]
    links = [f"- [{title}](bench/{path.name})\n" for title, path in zip(titles, pages, strict=True)]
    parts += ["## Speed\n\n" + "".join(links)] * bool(links)
    write_atomically(results_dir / "README.md", "\n".join(parts).encode("utf-8"))
    if front != before:
        write_atomically(readme, front.encode("utf-8"))
