"""Records -> rows: ``runs.csv`` and the series of ``results/<experiment>/``.

A series is what the runs did over their epochs: ``trajectories.csv`` (probes) of a learning-rate sweep,
``curves.csv`` (errors, or bounds) of a table.

What this machine's records show takes the place of committed rows of the same cell; the committed rows
of all other cells stay. So the results of several machines add up, and a fresh clone has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wn.config import SCHEMA, UserError
from wn.experiments import Experiment, Value
from wn.records import Record, Row, read_experiment, write_atomically
from wn.report import measures

RUNS = "runs.csv"

PARTS = ("train", "valid", "test")

MADE_COLUMNS = {
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
"""How a run was made."""

PROBED = {
    "v_norm": "v_norm_mean",
    "g": "g_mean",
    "w_norm": "w_norm_mean",
    "effective_lr": "effective_lr",
    "relative_update": "relative_update",
}
"""Columns of the trajectories, and the fields of ``probes.jsonl`` that they are."""

TRAJECTORY_COLUMNS = {"run_id": "string", "layer": "string", "epoch": "Int64"} | dict.fromkeys(
    PROBED, "float64"
)

CURVE_COLUMNS = {
    "run_id": "string",
    "epoch": "Int64",
    "train_error": "float64",
    "valid_error": "float64",
}

BOUND_COLUMNS = {"run_id": "string", "epoch": "Int64"} | dict.fromkeys(
    ("train_loss", "test_loss", "test_reconstruction", "test_kl"), "float64"
)

DIGITS = 5
"""Significant digits of a series: more than a figure shows, and the file stays small."""

BOUND_DIGITS = 7
"""Of bounds: seeds differ by hundredths of a nat in thousands."""

IMAGES = "images"
"""The folder of the pictures that runs have made, beside their rows."""

Cell = tuple[Value, ...]


class Rows(NamedTuple):
    """What is committed of an experiment."""

    runs: Any
    """Frame, a row per run that is done, in the order of the grid; see :func:`run_columns`."""
    series: Any
    """Frame, rows of the runs that :data:`SERIES` takes of such an experiment, by run and epoch."""


class Series(NamedTuple):
    """What is kept of a run's epochs."""

    file: str
    columns: dict[str, str]
    of: Callable[[Record], list[Row]]
    first_seed_only: bool


def run_columns(experiment: Experiment) -> dict[str, str]:
    """The columns of ``runs.csv`` and their types; what is set is kept as text (see :func:`_cell_of_row`)."""
    settings = dict.fromkeys([*experiment.axes, *experiment.fixed], "string")
    return {"run_id": "string", "schema": "Int64", **settings, **_result_columns(experiment), **MADE_COLUMNS}


def _result_columns(experiment: Experiment) -> dict[str, str]:
    """What a run gave: losses in nats and errors as fractions, of the final epoch but for ``best_*``."""
    measure = measures.of(experiment)
    numbers = [f"{part}_{metric}" for part in PARTS for metric in measure.metrics]
    initial = [f"initial_valid_{metric}" for metric in measure.metrics]
    columns = {"status": "string", **dict.fromkeys(numbers, "float64"), **measure.more, "best_epoch": "Int64"}
    return columns | dict.fromkeys([f"best_valid_{measure.name}", *initial], "float64")


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
    paths = {run_id: rows.to_dict("records") for run_id, rows in old.series.groupby("run_id")}
    paths = {run_id: rows for run_id, rows in paths.items() if run_id in kept_ids}
    kind = SERIES[experiment.report]
    seeds = experiment.values("seed")[: 1 if kind.first_seed_only else None]
    for cell, record in done.items():
        if dict(zip(experiment.axes, cell, strict=True))["seed"] in seeds:
            paths[record.content["run_id"]] = kind.of(record)
    series = [row for run in runs for row in paths.get(run["run_id"], [])]
    return Rows(_frame(runs, run_columns(experiment)), _frame(series, kind.columns))


def read(experiment: Experiment, folder: Path) -> Rows:
    """The rows in a results folder that belong to the experiment as it is now; none where it has no files."""
    runs = _read_csv(folder / RUNS, run_columns(experiment))
    cells = [_cell_of_row(row, experiment) for row in runs.to_dict("records")]
    kind = SERIES[experiment.report]
    current = runs[pd.Series([cell is not None for cell in cells], dtype=bool)]
    return Rows(current, _read_csv(folder / kind.file, kind.columns))


def write(rows: Rows, experiment: Experiment, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows.runs, folder / RUNS)
    write_csv(rows.series, folder / SERIES[experiment.report].file)


def copy_pictures(rows: Rows, local: dict[Cell, Record], folder: Path) -> None:
    """Keep the pictures of each norm's first finished run; where that is not local, what is there stays."""
    finished = rows.runs[rows.runs["status"] == "finished"]
    records = {record.content["run_id"]: record for record in local.values()}
    for norm, run_id in finished.drop_duplicates("norm")[["norm", "run_id"]].itertuples(index=False):
        for name, path in records[run_id].pictures.items() if run_id in records else ():
            (folder / IMAGES).mkdir(exist_ok=True)
            write_atomically(folder / IMAGES / f"{norm}-{name}.png", path.read_bytes())


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
    if row["schema"] != SCHEMA or not fixed:
        return None
    written = {tuple(map(str, cell.values())): tuple(cell.values()) for cell in experiment.cells()}
    return written.get(tuple(row[key] for key in experiment.axes))


def _run_row(record: Record, cell: Cell, experiment: Experiment) -> Row:
    """A run in one row, its settings written as the experiment has them (a record may have 1.0 for 1)."""
    content = record.content
    final, initial = content.get("final") or {}, content.get("initial") or {}
    best, diverged = content.get("best") or {}, content.get("diverged_at") or {}
    provenance, trainer = content["provenance"], content["config"]["trainer"]
    last = (record.metrics or [{}])[-1]
    settings = {**dict(zip(experiment.axes, cell, strict=True)), **experiment.fixed}
    return {
        "run_id": content["run_id"],
        "schema": content["schema"],
        **{key: str(value) for key, value in settings.items()},
        **final,
        **{f"initial_{name}": number for name, number in initial.items()},
        **{f"best_{name}": number for name, number in best.items()},
        **{key: trainer.get(key) for key in ("iwae_samples", "iwae_images")},
        "status": content["status"],
        "epochs": last.get("epoch"),
        "steps": last.get("step"),
        "diverged_epoch": diverged.get("epoch"),
        "diverged_step": diverged.get("step"),
        "seconds": content.get("seconds"),
        "commit": provenance["commit"],
        "dirty": provenance["dirty"],
        "device": provenance["device"],
        "stack_size": len(content["stack"]),
        "precision": trainer["precision"],
        "torch": provenance["packages"]["torch"],
    }


def _trajectory(record: Record) -> list[Row]:
    """The probes of the middle layer: of three layers, the second hidden one or the like."""
    probes = record.probes
    layers = list(dict.fromkeys(probe["layer"] for probe in probes))
    return [
        {
            "run_id": record.content["run_id"],
            "layer": probe["layer"],
            "epoch": probe["epoch"],
            **{name: _rounded(probe.get(field)) for name, field in PROBED.items()},
        }
        for probe in probes
        if probe["layer"] == layers[len(layers) // 2]
    ]


def _curve(record: Record) -> list[Row]:
    """The errors after every epoch of training."""
    return [
        {
            "run_id": record.content["run_id"],
            "epoch": row["epoch"],
            **{name: _rounded(row.get(name)) for name in ("train_error", "valid_error")},
        }
        for row in record.metrics
        if row["epoch"]
    ]


def _bounds(record: Record) -> list[Row]:
    """The losses after those epochs of training at which the test set was looked at."""
    names = [name for name, kind in BOUND_COLUMNS.items() if kind == "float64"]
    return [
        {
            "run_id": record.content["run_id"],
            "epoch": row["epoch"],
            **{name: _rounded(row.get(name), BOUND_DIGITS) for name in names},
        }
        for row in record.metrics
        if row["epoch"] and row.get("test_loss") is not None
    ]


def _rounded(number: float | None, digits: int = DIGITS) -> float | None:
    return None if number is None else float(f"{number:.{digits}g}")


SERIES = {
    "lr_robustness": Series("trajectories.csv", TRAJECTORY_COLUMNS, _trajectory, first_seed_only=True),
    "classification": Series("curves.csv", CURVE_COLUMNS, _curve, first_seed_only=False),
    "bound": Series("curves.csv", BOUND_COLUMNS, _bounds, first_seed_only=False),
}
"""By the kind of report."""
