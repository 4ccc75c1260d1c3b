"""Records -> rows: ``runs.csv`` has a row per run that is done, ``curves.csv`` what runs did by epoch.

A record or committed row counts if and only if its ``run_id`` is one of the plan's; what does not count is
named. The settings beside it are written for the reader and never read back.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wn.config import Config, UserError, parse
from wn.records import Record, write_atomically
from wn.report.plan import Plan, settings

Row = dict[str, Any]

RUNS, CURVES = "runs.csv", "curves.csv"
CURVE_COLUMNS = ("run_id", "epoch", "layer", "name", "value")
PROBED = ("v_norm_mean", "g_mean", "w_norm_mean", "effective_lr", "relative_update")
TEXT = {"run_id", "row", "norm", "status", "commit", "device", "precision", "torch", "layer", "name"}
"""Columns that are never numbers: a run_id such as 1234567890e1 looks like one."""

DIGITS = {"error": 5, "loss": 7}
"""Significant digits of a curve: an ELBO's seeds differ by hundredths of a nat in thousands."""


class Rows(NamedTuple):
    runs: dict[str, Row]
    """By run_id, in the plan's order: those that are done."""
    curves: dict[str, list[Row]]
    """By run_id."""


def records_in(folder: Path) -> tuple[list[Record], list[str]]:
    """The records of a folder, ordered by run_id, and a line that names those that cannot be read."""
    found, unreadable = [], []
    for path in sorted(folder.glob("*/record.json")):
        try:
            found.append(Record.read(path.parent))
        except UserError:
            unreadable.append(path.parent.name)
    return found, left_out(unreadable, f"record{{}} in {folder} cannot be read; delete those folders")


def left_out(run_ids: Sequence[str], what: str, why: str = "") -> list[str]:
    """One line about what does not count; none where there is nothing."""
    if not run_ids:
        return []
    words = what.format("s" * (len(run_ids) > 1), be="are" if len(run_ids) > 1 else "is")
    return [f"{len(run_ids)} {words} (first: {run_ids[0]}{why})"]


def counting(records: Iterable[Record], plan: Plan, folder: Path) -> tuple[dict[str, Record], list[str]]:
    """The records that are of a run of the plan, by run_id, and a line that names the others."""
    every = {str(record.content.get("run_id")): record for record in records}
    others = {run_id: record for run_id, record in every.items() if run_id not in plan.group_of}
    what = f"record{{}} in {folder} {{be}} of no run of {plan.name} as it is now"
    why = f": {difference(next(iter(others.values())), plan)}" if others else ""
    return {i: every[i] for i in plan.group_of if i in every}, left_out(list(others), what, why)


def config_of(record: Record) -> Config | None:
    """What a record says was trained; None where that is not what its run_id stands for (an older schema)."""
    try:
        config = parse(record.content["config"])
    except (UserError, LookupError):
        return None
    return config if config.run_id == record.content.get("run_id") else None


def difference(record: Record, plan: Plan) -> str:
    """In which settings a record differs from the run of the plan that is nearest to it."""
    config = config_of(record)
    if config is None:
        return f"schema {record.content.get('schema')}"

    def whole(config: Config) -> Row:
        return {**settings(config), "optim.lr": config.optim.lr, "seed": config.seed}

    def apart(other: Row) -> list[str]:
        return [key for key in own if own[key] != other.get(key)]

    own = whole(config)
    nearest = min((apart(whole(c)) for group in plan.groups for c in group.configs.values()), key=len)
    return ", ".join(f"{key}={own[key]}" for key in nearest)


def columns(plan: Plan) -> list[str]:
    """Of ``runs.csv``: settings, results (losses in nats, errors as fractions, of the last epoch), origin."""
    measured, key = plan.metric.parts, plan.metric.key
    return [
        *("run_id", *(plan.facets if plan.is_sweep else ("row",)), "norm", "lr", "seed", "status"),
        *(f"{part}_{name}" for part in ("train", "valid", "test") for name in measured),
        *(("test_nll", "iwae_samples", "iwae_images") if key == "loss" else ()),
        *("best_epoch", f"best_valid_{key}", *(f"initial_valid_{name}" for name in measured)),
        *("epochs", "steps", "diverged_epoch", "diverged_step", "seconds"),
        *("commit", "dirty", "device", "stack_size", "precision", "torch"),
    ]


def of_records(plan: Plan, records: Mapping[str, Record]) -> Rows:
    """The rows and curves of the records that are done."""
    done = {run_id: records[run_id] for run_id in plan.group_of if run_id in records and records[run_id].done}
    rows = {run_id: {**labels(plan, run_id), **_result(record)} for run_id, record in done.items()}
    return Rows(rows, {run_id: _curve(plan, run_id, record) for run_id, record in done.items()})


def labels(plan: Plan, run_id: str) -> Row:
    group = plan.group_of[run_id]
    config = group.configs[run_id]
    own = {"norm": group.norm, "lr": config.optim.lr, "seed": config.seed}
    return {"run_id": run_id, "row": group.name, **dict(zip(plan.facets, group.facet, strict=True)), **own}


def _result(record: Record) -> Row:
    content = record.content
    part = {key: content.get(key) or {} for key in ("final", "initial", "best", "diverged_at", "provenance")}
    trainer = content["config"]["trainer"]
    return {
        **part["final"],
        **{f"initial_{name}": number for name, number in part["initial"].items()},
        **{f"best_{name}": number for name, number in part["best"].items()},
        **{f"diverged_{name}": number for name, number in part["diverged_at"].items()},
        **{key: trainer.get(key) for key in ("iwae_samples", "iwae_images", "precision")},
        **{key: part["provenance"].get(key) for key in ("commit", "dirty", "device")},
        **{key: content.get(key) for key in ("status", "steps", "seconds")},
        "epochs": part["diverged_at"].get("epoch", trainer["epochs"]),
        "stack_size": len(content.get("stack", [])),
        "torch": part["provenance"].get("packages", {}).get("torch"),
    }


def _curve(plan: Plan, run_id: str, record: Record) -> list[Row]:
    """Of a sweep the first seed's probes of the middle layer; of rows, or at one rate, the metric."""
    group, key = plan.group_of[run_id], plan.metric.key
    rows: list[Row] = []
    if not plan.is_sweep or plan.one_lr:
        names = [f"{part}_{name}" for part in ("train", "valid", "test") for name in plan.metric.parts]
        names = [name for name in names if key == "loss" or name.endswith("error")]
        rows += _long(run_id, (row for row in record.metrics if row["epoch"]), names, DIGITS[key])
    if plan.is_sweep and group.configs[run_id].seed == group.seeds[0]:
        probes = record.probes
        layers = list(dict.fromkeys(probe["layer"] for probe in probes))
        middle = [probe for probe in probes if probe["layer"] == layers[len(layers) // 2]]
        rows += _long(run_id, middle, PROBED, DIGITS["error"])
    return rows


def _long(run_id: str, rows: Iterable[Row], names: Sequence[str], digits: int) -> list[Row]:
    return [
        {"run_id": run_id, "epoch": row["epoch"], "layer": row.get("layer"), "name": name, "value": value}
        for row in rows
        for name in names
        if row.get(name) is not None
        for value in [float(f"{row[name]:.{digits}g}")]
    ]


def committed(plan: Plan, folder: Path) -> tuple[Rows, list[str]]:
    """The committed rows and curves that count, and a line that names the rows that do not.

    Raises:
        UserError: a file is damaged.
    """
    every = {row["run_id"]: row for row in read_csv(folder / RUNS)}
    others = [run_id for run_id in every if run_id not in plan.group_of]
    runs = {i: {**every[i], **labels(plan, i)} for i in plan.group_of if i in every}
    curves: dict[str, list[Row]] = {run_id: [] for run_id in runs}
    for row in read_csv(folder / CURVES):
        if row["run_id"] in curves:
            curves[row["run_id"]].append(row)
    what = f"committed row{{}} in {folder / RUNS} {{be}} of no run of {plan.name} as it is now"
    return Rows(runs, curves), left_out(others, what)


def merged(plan: Plan, new: Rows, old: Rows) -> Rows:
    """New rows take the place of old ones of the same run; the results of several machines add up."""
    found = {i: new if i in new.runs else old for i in plan.group_of if i in new.runs or i in old.runs}
    return Rows({i: rows.runs[i] for i, rows in found.items()}, {i: r.curves[i] for i, r in found.items()})


def write(plan: Plan, rows: Rows, folder: Path) -> None:
    write_csv(folder / f"runs{plan.suffix}.csv", columns(plan), rows.runs.values())
    curves = (row for own in rows.curves.values() for row in own)
    write_csv(folder / f"curves{plan.suffix}.csv", CURVE_COLUMNS, curves)


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows: a float in the fewest digits that read back as the same number, unknown as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: None if v != v else v for k, v in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode("utf-8"))


def read_csv(path: Path) -> list[Row]:
    """The rows of a file as it was written; none where it is not there.

    Raises:
        UserError: it is empty, cut short, or holds what is no row (a merge's conflict markers).
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""
    names, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    for number, line in enumerate(lines, 2):
        if len(line) != len(names) or not re.fullmatch("[0-9a-f]{12}", line[0]):
            raise UserError(f"{path}: line {number} is no row; `git checkout {path}` brings the file back")
    if names[:1] != ["run_id"] or not text.endswith("\n"):
        raise UserError(f"{path}: empty or cut short; `git checkout {path}` brings the file back")
    return [{k: v if k in TEXT else _value(v) for k, v in zip(names, line, strict=True)} for line in lines]


def _value(text: str) -> Any:
    for read in (int, float, {"": None, "True": True, "False": False}.__getitem__):
        try:
            return read(text)
        except (ValueError, KeyError):
            continue
    return text
