"""Records -> rows: ``runs.csv`` and ``trajectories.csv`` of ``results/<experiment>/``.

What this machine's records show takes the place of committed rows of the same cell; the committed rows
of all other cells stay. So the results of several machines add up, and a fresh clone has them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wn.config import SCHEMA, UserError
from wn.experiments import Experiment, Value
from wn.records import Record, Row, read_experiment, write_atomically

RUNS = "runs.csv"
TRAJECTORIES = "trajectories.csv"

RESULT_COLUMNS = {
    "status": "string",
    "train_loss": "float64",
    "train_error": "float64",
    "valid_loss": "float64",
    "valid_error": "float64",
    "test_loss": "float64",
    "test_error": "float64",
    "best_epoch": "Int64",
    "best_valid_error": "float64",
    "initial_valid_loss": "float64",
    "initial_valid_error": "float64",
    "epochs": "Int64",
    "steps": "Int64",
    "diverged_epoch": "Int64",
    "diverged_step": "Int64",
    "seconds": "float64",
    "commit": "string",
    "dirty": "boolean",
    "device": "string",
    "stack_size": "Int64",
    "precision": "string",
    "torch": "string",
}
"""What a run gave. Losses in nats and errors as fractions, of the final epoch but for ``best_*``."""

MEASURES = {
    "v_norm": "v_norm_mean",
    "g": "g_mean",
    "w_norm": "w_norm_mean",
    "effective_lr": "effective_lr",
    "relative_update": "relative_update",
}
"""Columns of the trajectories, and the fields of ``probes.jsonl`` that they are."""

TRAJECTORY_COLUMNS = {"run_id": "string", "layer": "string", "epoch": "Int64"} | dict.fromkeys(
    MEASURES, "float64"
)

DIGITS = 5
"""Significant digits of a trajectory: more than a figure shows, and the file stays small."""

Cell = tuple[Value, ...]


class Rows(NamedTuple):
    """What is committed of an experiment."""

    runs: Any
    """Frame, a row per run that is done, in the order of the grid; see :func:`run_columns`."""
    trajectories: Any
    """Frame, a row per run of the first seed and probe of its middle layer; see TRAJECTORY_COLUMNS."""


def run_columns(experiment: Experiment) -> dict[str, str]:
    """The columns of ``runs.csv`` and their types; what is set is kept as text (see :func:`_cell_of_row`)."""
    settings = dict.fromkeys([*experiment.grid, *experiment.fixed], "string")
    return {"run_id": "string", "schema": "Int64", **settings, **RESULT_COLUMNS}


def local_records(experiment: Experiment, runs_dir: Path) -> dict[Cell, Record]:
    """This machine's records that fill a cell of the grid, whatever their status.

    Raises:
        UserError: a record is unreadable, or two different runs fill the same cell.
    """
    found: dict[Cell, Record] = {}
    for record in read_experiment(runs_dir, experiment.name):
        cell = experiment.cell_of(record.content) if record.content["schema"] == SCHEMA else None
        if cell is None:
            continue
        other = found.setdefault(tuple(cell.values()), record)
        if other is not record:
            setting = ", ".join(f"{key}={value}" for key, value in cell.items())
            raise UserError(
                f"{other.folder} and {record.folder}: two different runs of {setting}, of which a table "
                "can show one; delete the folder of the other"
            )
    return found


def merge(experiment: Experiment, local: dict[Cell, Record], folder: Path) -> Rows:
    """The rows of the local records that are done, and the rows already in ``folder`` for all other cells."""
    old = read(experiment, folder)
    committed = {_cell_of_row(row, experiment): row for row in old.runs.to_dict("records")}
    done = {cell: record for cell, record in local.items() if record.done}
    merged = committed | {cell: _run_row(record, cell, experiment) for cell, record in done.items()}
    cells = [tuple(cell.values()) for cell in experiment.cells()]
    runs = [merged[cell] for cell in cells if cell in merged]

    local_ids = {record.content["run_id"] for record in done.values()}
    kept_ids = {row["run_id"] for row in runs} - local_ids
    paths = {run_id: rows.to_dict("records") for run_id, rows in old.trajectories.groupby("run_id")}
    paths = {run_id: rows for run_id, rows in paths.items() if run_id in kept_ids}
    first_seed = experiment.grid["seed"][0]
    for cell, record in done.items():
        if dict(zip(experiment.grid, cell, strict=True))["seed"] == first_seed:
            paths[record.content["run_id"]] = _trajectory(record)
    trajectories = [row for run in runs for row in paths.get(run["run_id"], [])]
    return Rows(_frame(runs, run_columns(experiment)), _frame(trajectories, TRAJECTORY_COLUMNS))


def read(experiment: Experiment, folder: Path) -> Rows:
    """The rows in a results folder that belong to the experiment as it is now; none where it has no files."""
    runs = _read_csv(folder / RUNS, run_columns(experiment))
    current = [_cell_of_row(row, experiment) is not None for row in runs.to_dict("records")]
    return Rows(runs[pd.Series(current, dtype=bool)], _read_csv(folder / TRAJECTORIES, TRAJECTORY_COLUMNS))


def write(rows: Rows, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows.runs, folder / RUNS)
    write_csv(rows.trajectories, folder / TRAJECTORIES)


def write_csv(frame: Any, path: Path) -> None:
    """Write a frame; a float is written in the fewest digits that read back as the same number."""
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n").encode())


def _read_csv(path: Path, columns: dict[str, str]) -> Any:
    if not path.exists():
        return _frame([], columns)
    # all columns have types: run_id's 12 hexadecimal digits may look like a number, as in 1234567890e1;
    # and floats are first text: not every version of pandas reads them to the last digit by itself
    types = {name: "string" if kind == "float64" else kind for name, kind in columns.items()}
    frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    return frame.reindex(columns=list(columns)).astype(columns)


def _frame(rows: list[Row], columns: dict[str, str]) -> Any:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _cell_of_row(row: Row, experiment: Experiment) -> Cell | None:
    """The cell that a committed row fills; None where the experiment or the schema has changed since."""
    fixed = all(row[key] == str(value) for key, value in experiment.fixed.items())
    written = [{str(value): value for value in values} for values in experiment.grid.values()]
    cell = [values.get(row[key]) for key, values in zip(experiment.grid, written, strict=True)]
    if row["schema"] != SCHEMA or not fixed or None in cell:
        return None
    return tuple(value for value in cell if value is not None)


def _run_row(record: Record, cell: Cell, experiment: Experiment) -> Row:
    """A run in one row. ``cell_of`` takes 1 for 1.0, so the settings are written as the grid has them."""
    content = record.content
    final, initial = content.get("final") or {}, content.get("initial") or {}
    best, diverged = content.get("best") or {}, content.get("diverged_at") or {}
    provenance = content["provenance"]
    last = (record.metrics or [{}])[-1]
    grid = {
        key: values[values.index(value)]
        for (key, values), value in zip(experiment.grid.items(), cell, strict=True)
    }
    return {
        "run_id": content["run_id"],
        "schema": content["schema"],
        **{key: str(value) for key, value in (grid | experiment.fixed).items()},
        **{f"{part}_{what}": final.get(f"{part}_{what}") for part in _PARTS for what in ("loss", "error")},
        "status": content["status"],
        "best_epoch": best.get("epoch"),
        "best_valid_error": best.get("valid_error"),
        "initial_valid_loss": initial.get("valid_loss"),
        "initial_valid_error": initial.get("valid_error"),
        "epochs": last.get("epoch"),
        "steps": last.get("step"),
        "diverged_epoch": diverged.get("epoch"),
        "diverged_step": diverged.get("step"),
        "seconds": content.get("seconds"),
        "commit": provenance["commit"],
        "dirty": provenance["dirty"],
        "device": provenance["device"],
        "stack_size": len(content["stack"]),
        "precision": content["config"]["trainer"]["precision"],
        "torch": provenance["packages"]["torch"],
    }


_PARTS = ("train", "valid", "test")


def _trajectory(record: Record) -> list[Row]:
    """The probes of the middle layer: of three layers, the second hidden one or the like."""
    probes = record.probes
    layers = list(dict.fromkeys(probe["layer"] for probe in probes))
    return [
        {
            "run_id": record.content["run_id"],
            "layer": probe["layer"],
            "epoch": probe["epoch"],
            **{name: _rounded(probe.get(field)) for name, field in MEASURES.items()},
        }
        for probe in probes
        if probe["layer"] == layers[len(layers) // 2]
    ]


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{DIGITS}g}")
