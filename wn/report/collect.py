"""Records -> data frames: ``runs.csv`` has a row per run that is done, ``curves.csv`` what runs did by epoch.

A record or committed row counts if and only if its ``run_id`` is one of the plan's; what does not count is
named. The settings beside it are written for the reader and never read back.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wn.config import Config, UserError, parse
from wn.provenance import THEN
from wn.records import Record, write_atomically
from wn.report.plan import Plan
from wn.report.status import damaged, left_out

RUNS, CURVES = "runs.csv", "curves.csv"
CURVE_COLUMNS = ["run_id", "epoch", "layer", "name", "value"]
PROBED = ("v_norm_mean", "g_mean", "w_norm_mean", "effective_lr", "direction_lr", "relative_update")
TEXT = ("row", "norm", "status", "commit", "dirty", "device", "precision", "torch")
INTEGERS = ("best_epoch", "epochs", "steps", "diverged_epoch", "diverged_step", "stack_size")

DIGITS = {"error": 5, "loss": 7}
"""Significant digits of a curve: an ELBO's seeds differ by hundredths of a nat in thousands."""


class Rows(NamedTuple):
    """What is done, in the plan's order: ``runs`` by run_id, with :func:`columns` and ``row``, and curves."""

    runs: pd.DataFrame
    curves: pd.DataFrame


def config_of(record: Record) -> Config | None:
    """What a record says was trained; None where that is not what its run_id stands for (an older schema)."""
    try:
        config = parse(record.content["config"])
    except (UserError, LookupError):
        return None
    return config if config.run_id == record.content.get("run_id") else None


def columns(plan: Plan) -> list[str]:
    """Of ``runs.csv``: settings, results (losses in nats, errors as fractions, of the last epoch), origin."""
    measured, key = plan.metric.parts, plan.metric.key
    return [
        *(*(plan.facets if plan.is_sweep else ("row",)), "norm", "lr", "seed", "status"),
        *(f"{part}_{name}" for part in ("train", "valid", "test") for name in measured),
        *(("test_nll", "iwae_samples", "iwae_images") if key == "loss" else ()),
        *("best_epoch", f"best_valid_{key}", *(f"initial_valid_{name}" for name in measured)),
        *("epochs", "steps", "diverged_epoch", "diverged_step", "seconds"),
        *("commit", "dirty", "device", "stack_size", "precision", "torch"),
    ]


def of_records(plan: Plan, records: Mapping[str, Record]) -> Rows:
    """The rows and curves of the plan's records that are done."""
    done = {i: records[i] for i in plan.group_of if i in records and records[i].done}
    results = pd.DataFrame.from_dict({i: _result(record) for i, record in done.items()}, orient="index")
    curves = [_curve(plan, run_id, record) for run_id, record in done.items()]
    return _rows(plan, results, pd.concat(curves) if curves else pd.DataFrame())


def _rows(plan: Plan, results: pd.DataFrame, curves: pd.DataFrame) -> Rows:
    """What counts of the results, with the plan's names and settings; other columns are numbers."""
    runs = results.reindex([run_id for run_id in plan.group_of if run_id in results.index])
    runs = runs.reindex(columns=columns(plan)).rename_axis("run_id")
    runs = runs.astype({name: float for name in runs if name not in (*TEXT, *plan.facets)})
    groups = [plan.group_of[run_id] for run_id in runs.index]
    configs = [group.configs[run_id] for group, run_id in zip(groups, runs.index, strict=True)]
    runs = runs.assign(
        **{facet: [group.facet[i] for group in groups] for i, facet in enumerate(plan.facets)},
        **{"row": [group.name for group in groups], "norm": [group.norm for group in groups]},
        **{"lr": [config.optim.lr for config in configs], "seed": [config.seed for config in configs]},
    )
    curves = curves.reindex(columns=CURVE_COLUMNS)
    curves = curves[curves["run_id"].isin(runs.index)]
    return Rows(runs, curves.astype({"epoch": int, "value": float}))


def _result(record: Record) -> dict[str, Any]:
    content = record.content
    found: dict[str, Any] = dict(content.get("final") or {})
    for key in ("initial", "best", "diverged_at"):
        part = content.get(key) or {}
        found |= {f"{key.removesuffix('_at')}_{name}": number for name, number in part.items()}
    trainer, origin = content["config"]["trainer"], content.get("provenance", {})
    found |= {key: trainer.get(key) for key in ("iwae_samples", "iwae_images", "precision")}
    pieces = [*origin.get("before", []), {**origin, "torch": origin.get("packages", {}).get("torch")}]
    found |= {key: _in_turn(piece.get(key) for piece in pieces) for key in ("commit", "torch")}
    found |= {key: content.get(key) for key in ("status", "steps", "seconds")}
    found |= {"epochs": found.get("diverged_epoch", trainer["epochs"])}
    found |= {"stack_size": len(content.get("stack", [])), "device": origin.get("device")}
    return found | {"dirty": None if origin.get("dirty") is None else str(origin["dirty"])}


def _in_turn(made: Iterable[str | None]) -> str | None:
    """What a run was trained by; of a resumed one, all in the order in which they came first."""
    return THEN.join(dict.fromkeys(filter(None, made))) or None


def _curve(plan: Plan, run_id: str, record: Record) -> pd.DataFrame:
    """Of a sweep the first seed's probes of every layer; of rows, or at one rate, the metric."""
    group, key = plan.group_of[run_id], plan.metric.key
    found = [pd.DataFrame(columns=CURVE_COLUMNS)]
    if not plan.is_sweep or plan.one_lr:
        measured = plan.metric.parts if key == "loss" else ("error",)
        names = [f"{part}_{name}" for part in ("train", "valid", "test") for name in measured]
        metrics = pd.DataFrame(record.metrics).reindex(columns=["epoch", *names])
        found.append(metrics[metrics["epoch"] > 0].melt("epoch", var_name="name"))
    probed = plan.is_sweep and group.configs[run_id].seed == group.seeds[0]
    if len(probes := pd.DataFrame(record.probes if probed else [])):
        probes = probes.reindex(columns=["epoch", "layer", *PROBED])
        found.append(probes.melt(["epoch", "layer"], var_name="name"))
    curve = pd.concat(found[1:] or found).dropna(subset="value").assign(run_id=run_id)
    return curve.assign(value=[float(f"{value:.{DIGITS[key]}g}") for value in curve["value"]])


def committed(plan: Plan, folder: Path) -> tuple[Rows, list[str]]:
    """The committed rows and curves that count, and a line that names the rows that do not.

    Raises:
        UserError: a file is damaged.
    """
    runs = read_csv(folder / RUNS).set_index("run_id")
    if runs.index.has_duplicates:  # a merge that kept both sides
        raise damaged(folder / RUNS)
    others = [run_id for run_id in runs.index if run_id not in plan.group_of]
    what = f"committed row{{}} in {folder / RUNS} {{be}} of no run of {plan.name} as it is now"
    return _rows(plan, runs, read_csv(folder / CURVES)), left_out(others, what)


def merged(plan: Plan, new: Rows, old: Rows) -> Rows:
    """New rows take the place of old ones of the same run; the results of several machines add up."""
    kept = old.runs[~old.runs.index.isin(new.runs.index)]
    order = {run_id: place for place, run_id in enumerate(plan.group_of)}
    curves = pd.concat([new.curves, old.curves[old.curves["run_id"].isin(kept.index)]])
    by_run = curves.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable")
    return _rows(plan, pd.concat([new.runs, kept]), by_run)


def write(plan: Plan, rows: Rows, folder: Path) -> None:
    integers = dict.fromkeys(INTEGERS, "Int64")
    write_csv(folder / RUNS, rows.runs[columns(plan)].astype(integers).reset_index())
    write_csv(folder / CURVES, rows.curves)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table: a float in the fewest digits that read back as the same number, unknown as nothing."""
    write_atomically(path, table.to_csv(index=False, lineterminator="\n").encode("utf-8"))


def read_csv(path: Path, key: str = "run_id") -> pd.DataFrame:
    """A file as it was written, as text, whose column ``key`` has hashes; no rows where it is not there.

    Raises:
        UserError: it is empty, cut short, or holds what is no row (a merge's conflict markers).
    """
    if not path.exists():
        return pd.DataFrame(columns=CURVE_COLUMNS)
    content = path.read_bytes()
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str)
        hashes = table[key].str.fullmatch("[0-9a-f]{12}").eq(True)
    except (ValueError, LookupError):  # pandas' own, bytes that are not UTF-8, and no such column
        raise damaged(path) from None
    if not content.endswith(b"\n") or not hashes.all():
        raise damaged(path)
    return table
