"""Tables and figures -> pages: for a terminal, beside the records, ``results/README.md``, the front page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wn import experiments
from wn.records import Record, to_json, write_atomically
from wn.report import collect, columns
from wn.report.collect import Row, Rows
from wn.report.plan import Plan, of_experiment
from wn.report.tables import Table, table_of

PICTURES = ("reconstructions", "samples")
"""That a VAE leaves; of each row the first finished run's are kept in ``images/``."""

ALT = {
    "error": "Final validation error against learning rate",
    "loss": "Final validation loss against learning rate",
    "trajectories": "Norm of the weights, gain, effective learning rate and relative update by epoch",
    "curves": "Learning curves",
    "rows": "Training error by epoch, a panel per row",
    "seeds": "Test metric of every seed, per row",
    "parts": "Reconstruction, KL and training ELBO by epoch",
}
"""Figures, in the order of the page."""


def command(plan: Plan, norm: str | None = None) -> str:
    """What to type to train an experiment's runs, or those of one norm; finished ones are skipped."""
    return f"python -m wn.train +experiment={plan.name}" + (f" norm={norm}" if norm else "")


def unfinished(plan: Plan, runs: dict[str, Row]) -> list[tuple[str, str]]:
    """Rows of an experiment with runs still to be done, or all in one, and the command that does them."""
    if plan.experiment is None:
        return []
    done = {group.name: sum(run_id in runs for run_id in group.configs) for group in plan.groups}
    left = [group for group in plan.groups if done[group.name] < len(group.configs)]
    if len(left) == len(plan.groups):
        return [(f"{sum(done.values())} of {len(plan.group_of)} runs done", command(plan))]
    return [(f"{g.name}, {done[g.name]} of {len(g.configs)} runs done", command(plan, g.norm)) for g in left]


def to_choose(plan: Plan, results_dir: Path) -> list[tuple[str, str]]:
    """What an experiment that chooses this one's learning rates still has to say, or says otherwise."""
    experiment = plan.experiment
    if experiment is None or experiment.chosen_by in (None, plan.name):
        return []
    steps = []
    other = of_experiment(experiments.load(str(experiment.chosen_by)))
    runs = collect.committed(other, results_dir / other.name)[0].runs
    best = {
        group.norm: row.get("best_lr")
        for group, row in zip(other.groups, table_of(other, runs).rows, strict=True)
        if row["runs"] == row["planned"]
    }
    for row in experiment.rows:
        found = best.get(row.norm)
        if found is not None and row.chosen != found and not row.set:
            said = "none" if row.chosen is None else f"{row.chosen:g}"
            steps.append(
                (f"{row.name}: {other.name} chooses lr {found:g}, the file says {said}", f"chosen: {found:g}")
            )
    if any(row.chosen is None for row in experiment.rows) and not best:
        steps.append(
            ("learning rates to be chosen", f"{command(other)} && python -m wn.report {other.name} --publish")
        )
    return steps


def text(table: Table, steps: Iterable[tuple[str, str]]) -> str:
    """The table for a terminal, with what is to be known and what is to be done."""
    return "\n".join(
        [columns.aligned(table.cells()), *table.notes, *(f"{what}: {how}" for what, how in steps)]
    )


def markdown(table: Table, steps: Iterable[tuple[str, str]], front: bool = False) -> str:
    lines = [f"- {note}" for note in table.notes] + [f"- {what}: `{how}`" for what, how in steps]
    return "\n".join([columns.in_markdown(table.cells(front)), "", *lines]).rstrip() + "\n"


def section(plan: Plan, rows: Rows, table: Table, steps: list[tuple[str, str]], folder: Path, at: str) -> str:
    """What a page says of a plan, whose files lie in ``folder``, or from where the page is in ``at``."""
    parts = []
    if plan.experiment:
        parts = [f"Claim examined: {' '.join(plan.experiment.claim.split())}"]
        parts.append(f"```\n{command(plan)}\npython -m wn.report {plan.name}\n```")
    parts.append(markdown(table, steps).rstrip())
    if rows.runs:
        names = [name + plan.suffix for name in ALT]
        figures = zip(names, ALT.values(), strict=True)
        parts += [f"![{alt}]({at}{name}.svg)" for name, alt in figures if (folder / f"{name}.svg").exists()]
        parts += [*_images(plan, folder, at), _origin(plan, rows, at)]
    return "\n\n".join(parts) + "\n"


def _images(plan: Plan, folder: Path, at: str) -> list[str]:
    lines = [["row", *PICTURES]]
    for group in plan.groups:
        names = [f"images/{slug(group.name)}-{name}.png" for name in PICTURES]
        if all((folder / name).exists() for name in names):
            shown = (f"![{group.name}: {alt}]({at}{name})" for alt, name in zip(PICTURES, names, strict=True))
            lines.append([group.name, *shown])
    return [columns.in_markdown(lines)] if len(lines) > 1 else []


def copy_pictures(plan: Plan, rows: Rows, records: Mapping[str, Record], folder: Path) -> None:
    """Keep the pictures of each row's first finished run; where that is not local, what is there stays."""
    for group in plan.groups:
        finished = [i for i in group.configs if i in rows.runs and rows.runs[i]["status"] == "finished"]
        record = records.get(finished[0]) if finished and not plan.is_sweep else None
        for name, path in record.pictures.items() if record else ():
            (folder / "images").mkdir(exist_ok=True)
            write_atomically(folder / "images" / f"{slug(group.name)}-{name}.png", path.read_bytes())


def slug(name: str) -> str:
    """A row's name as a file's."""
    return re.sub(r"\W+", "-", name).strip("-")


def _origin(plan: Plan, rows: Rows, at: str) -> str:
    """Which runs, made where and by what."""
    runs = list(rows.runs.values())

    def values(name: str) -> str:
        return ", ".join(sorted({str(run[name]) for run in runs if run.get(name) is not None})) or "unknown"

    commits = {
        f"{r['commit'][:10]}{' (with uncommitted changes)' * bool(r['dirty'])}"
        for r in runs
        if r.get("commit")
    }
    seeds = len({run["seed"] for run in runs})
    facts = [f"{len(runs)} of {len(plan.group_of)} runs done, {seeds} seed{'s' * (seeds > 1)}"]
    facts += [f"{name} {values(name)}" for name in ("device", "precision", "torch")]
    facts.append(f"commit {', '.join(sorted(commits)) or 'unknown'}")
    file = f"runs{plan.suffix}.csv"
    return "; ".join([*facts, f"every run is a row of [{file}]({at}{file})"]) + "."


def write_local(folder: Path, summaries: list[dict[str, Any]], parts: list[str]) -> None:
    """Write ``page.md``, ``points.csv`` and ``summary.json``, which say all to whoever shows them elsewhere."""
    write_atomically(folder / "page.md", "\n".join([*parts, ""]).encode("utf-8"))
    first = summaries[0]
    collect.write_csv(
        folder / "points.csv", list(first["points"][0]) if first["points"] else [], first["points"]
    )
    figures = [name for summary in summaries for name in summary["figures"]]
    told = {**{key: first[key] for key in ("x", "y", "line")}, "points": "points.csv", "figures": figures}
    write_atomically(folder / "summary.json", (to_json(told, indent=1) + "\n").encode("utf-8"))


def write_pages(results_dir: Path) -> None:
    """Write ``results/README.md``, and renew the tables between the markers of the project's README."""
    readme = results_dir.parent / "README.md"
    front = readme.read_text(encoding="utf-8") if readme.exists() else ""
    parts = [
        "# Results\n\nGenerated by `python -m wn.report --publish` from the rows beside it; not edited by hand."
    ]
    parts[0] += " What each column means: [docs/TABLES.md](../docs/TABLES.md).\n"
    for name in experiments.names():
        plan = of_experiment(experiments.load(name))
        rows, _ = collect.committed(plan, results_dir / name)
        table = table_of(plan, rows.runs)
        steps = unfinished(plan, rows.runs) + to_choose(plan, results_dir)
        assert plan.experiment is not None
        parts.append(f"## {plan.experiment.title}\n")
        parts.append(section(plan, rows, table, steps, results_dir / name, f"{name}/"))
        begin, end = f"<!-- begin {name}: written by python -m wn.report -->\n", f"<!-- end {name} -->"
        before, found, rest = front.partition(begin)
        if found and end in rest and (not plan.is_sweep or len(rows.runs) == len(plan.group_of)):
            front = before + begin + markdown(table, steps, front=True) + end + rest.partition(end)[2]
    pages = sorted((results_dir / "bench").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for path in pages]
    links = [f"- [{title}](bench/{path.name})\n" for title, path in zip(titles, pages, strict=True)]
    parts += ["## Speed\n\n" + "".join(links)] * bool(links)
    results_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(results_dir / "README.md", "\n".join(parts).encode("utf-8"))
    if front and front != readme.read_text(encoding="utf-8"):
        write_atomically(readme, front.encode("utf-8"))
