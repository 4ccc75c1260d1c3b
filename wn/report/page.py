"""Tables and figures -> pages: for a terminal, beside the records, ``results/README.md``, the front page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from wn import experiments
from wn.provenance import THEN
from wn.records import to_json, write_atomically
from wn.report import collect, columns
from wn.report.collect import Rows
from wn.report.plan import Group, Plan, of_experiment
from wn.report.tables import Table, lines_of, table_of

FIGURES = {
    "error": "Final validation error against learning rate",
    "loss": "Final validation loss against learning rate",
    "curves": "Learning curves",
    "parts": "Reconstruction, KL and training ELBO by epoch",
    "trajectories": "Norm of the weights, gain, learning rates and relative update by epoch",
}
"""In the order of the page."""

Steps = list[tuple[str, str]]
"""What is to be done, and the command that does it."""


def steps_of(plan: Plan, rows: Rows, results_dir: Path) -> Steps:
    """Rows with runs still to train, a step a norm or one for all; learning rates still to be chosen."""
    experiment = plan.experiment
    if experiment is None:
        return []
    command = f"python -m wn.train +experiment={plan.name}"
    done = {group: sum(run_id in rows.runs.index for run_id in group.configs) for group in plan.groups}
    left = [group for group in plan.groups if done[group] < len(group.configs)]
    told: dict[str, list[str]] = {}  # a command trains all rows of a norm
    for group in left:
        words = f"{group.name}, {done[group]} of {len(group.configs)} runs done"
        told.setdefault(group.row.norm if group.row else group.norm, []).append(words)
    steps = [("; ".join(groups), f"{command} norm={norm}") for norm, groups in told.items()]
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
    complete = [line for line in lines_of(chooser, runs) if {*line.group.configs} <= {*runs.index}]
    best = [(_own(line.group), line.lr) for line in complete if not columns.missing(line.lr)]
    for group in plan.groups:
        found, said = [lr for own, lr in best if own == _own(group)], group.row and group.row.chosen
        if len(found) == 1 and said != found[0]:
            file = f"experiments/{plan.name}.yaml"
            what = f"{group.name}: {other} chooses lr {found[0]:g}, {file} says {said}"
            steps.append((what, f"chosen: {found[0]:g}"))
    return steps


def _own(group: Group) -> dict[str, Any]:
    """What sets a group apart, whether a row says it in ``set`` or a grid behind the preset."""
    if group.row is None:
        return experiments.settings_of("norm", group.norm)
    return group.row.set | experiments.settings_of("norm", group.row.norm)


def text(table: Table, steps: Steps) -> str:
    """The table for a terminal, with what is to be known and done."""
    below = [f"{what}: {how}" for what, how in steps]
    return "\n".join([columns.aligned(table.cells()), *table.notes, *below])


def markdown(table: Table, steps: Steps, front: bool = False) -> str:
    """The same as a page has it; the front page has fewer columns."""
    below = [f"- {note}" for note in table.notes] + [f"- {what}: `{how}`" for what, how in steps] * (
        not front
    )
    return "\n".join([columns.in_markdown(table.cells(front)), "", *below]).rstrip() + "\n"


def build(plan: Plan, rows: Rows, table: Table, folder: Path, png: bool = False) -> dict[str, Any]:
    """Write the rows, table and figures of a plan into a folder; the figures as PNG too, for W&B.

    Returns:
        A summary to show elsewhere: ``x``, ``y`` and ``line`` are columns of ``points``; ``figures`` are the
        names of the PNG files.
    """
    from wn.report import curves, figures  # matplotlib takes a second

    folder.mkdir(parents=True, exist_ok=True)
    collect.write(plan, rows, folder)
    collect.write_csv(folder / "table.csv", pd.DataFrame(table.rows))
    with figures.house_style():
        drawn, summary = curves.draw(plan, table.rows, rows)
        suffixes = [".svg"] + [".png"] * png
        for name, suffix in itertools.product(drawn, suffixes):
            figures.save(drawn[name], folder / f"{name}{suffix}")
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path.stem not in drawn or path.suffix not in suffixes:  # of an earlier state of the rows
            path.unlink()
    return {**summary, "figures": [f"{name}.png" for name in drawn] * png}


def section(plan: Plan, rows: Rows, table: Table, steps: Steps, folder: Path, at: str) -> str:
    """What a page says of a plan, whose files lie in ``folder``: ``at``, seen from the page."""
    parts = [markdown(table, steps).rstrip()]
    if plan.experiment:
        command = f"python -m wn.train +experiment={plan.name}\npython -m wn.report {plan.name}"
        claim = f"Claim examined: {plan.experiment.claim}"
        parts[:0] = [f"## {plan.experiment.title}", claim, f"```\n{command}\n```"]
    if rows.runs.empty:
        return "\n\n".join(parts) + "\n"
    from wn.report import published  # matplotlib takes a second

    if beside := published.section(plan, rows):
        parts.append(beside)
    drawn = {name: alt for name, alt in FIGURES.items() if (folder / f"{name}.svg").exists()}
    parts += [f"![{alt}]({at}{name}.svg)" for name, alt in drawn.items()]
    every = f"; every run is a row of [{collect.RUNS}]({at}{collect.RUNS})"
    if (folder / f"{plan.name}.html").exists():
        every += (
            f", and [{plan.name}.html]({at}{plan.name}.html), saved and opened in a browser, shows them all"
        )
    return "\n\n".join([*parts, facts_of(plan, rows) + every]) + ".\n"


def facts_of(plan: Plan, rows: Rows) -> str:
    """How many runs are done, and by what they were made."""
    runs = rows.runs
    n = runs["seed"].nunique()
    facts = [f"{len(runs)} of {len(plan.group_of)} runs done, {n} seed{'s' * (n != 1)}"]
    for name in ("device", "precision", "torch", "commit"):
        pieces = {piece for text in runs[name].dropna().unique() for piece in text.split(THEN)}
        shown = sorted({piece[:10] for piece in pieces} if name == "commit" else pieces)
        facts.append(f"{name} {', '.join(shown) or 'unknown'}")
    return "; ".join(facts) + " (some with uncommitted changes)" * bool(runs["dirty"].eq("True").any())


def write_local(folder: Path, name: str, parts: list[str], summary: dict[str, Any]) -> None:
    """Write ``page.md``; and ``points.csv`` and ``summary.json`` for whoever shows the figures elsewhere."""
    head = f"# {name}\n\nWhat each column means: docs/TABLES.md.\n"
    write_atomically(folder / "page.md", "\n".join([head, *parts, ""]).encode("utf-8"))
    collect.write_csv(folder / "points.csv", summary["points"])
    told = {**summary, "points": "points.csv"}
    write_atomically(folder / "summary.json", (to_json(told, indent=1) + "\n").encode("utf-8"))


def write_pages(results_dir: Path) -> None:
    """Write ``results/README.md``, and renew the tables between the markers of the project's README."""
    readme = results_dir.parent / "README.md"
    front = before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    parts = [
        "# Results\n\nGenerated by `python -m wn.report --publish` from the rows beside it. What each"
        " column means: [docs/TABLES.md](../docs/TABLES.md).\n"
    ]
    pending: list[str] = []  # behind all that has rows
    for name in experiments.names():
        plan = of_experiment(name)
        rows, _ = collect.committed(plan, results_dir / name)
        table, steps = table_of(plan, rows.runs), steps_of(plan, rows, results_dir)
        place = pending if rows.runs.empty else parts
        place.append(section(plan, rows, table, steps, results_dir / name, f"{name}/"))
        front = renewed(front, name, markdown(table, steps, front=True))
    parts += pending
    pages = sorted((results_dir / "bench").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for path in pages]
    links = [f"- [{title}](bench/{path.name})\n" for title, path in zip(titles, pages, strict=True)]
    parts += ["## Speed\n\n" + "".join(links)] * bool(links)
    write_atomically(results_dir / "README.md", "\n".join(parts).encode("utf-8"))
    if front != before:
        write_atomically(readme, front.encode("utf-8"))


def renewed(text: str, name: str, content: str) -> str:
    """A page with other content between the markers of ``name``; as it is where it has none."""
    begin, end = f"<!-- begin {name}: written by python -m wn.report -->\n", f"<!-- end {name} -->"
    head, found, rest = text.partition(begin)
    return head + begin + content + end + rest.partition(end)[2] if found and end in rest else text
