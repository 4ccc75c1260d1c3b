"""``python -m wn.sync NAME``: send to W&B the recorded runs that never reached it, and the sweep's report."""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import sys
from pathlib import Path

from wn import tracking
from wn.config import TrackingConfig, UserError, nearest
from wn.records import Record, read_experiment
from wn.stops import tell


def sync(folder: Path, again: bool = False) -> str:
    """Send the runs of a folder that have ended and never reached W&B (``again``: all that have ended).

    Returns a line that says what was sent. UserError: no such records, no key, or W&B does not take them.
    """
    records = list(read_experiment(folder.parent, folder.name))
    if not records:
        known = nearest(folder.name, [path.name for path in folder.parent.glob("*") if path.is_dir()])
        raise UserError(f"{folder}: no records{known}")
    if tracking.available("auto") != "online":
        raise UserError("W&B: no key, or WANDB_MODE forbids; run `wandb login` or set WANDB_API_KEY")
    ended = [record for record in records if record.status not in ("new", "running")]
    pending = [record for record in ended if again or not _is_online(record)]
    link = tracking.Connection("online", fallback=False)
    sent = tracking.send([(record, _tracking(record)) for record in pending], link)
    send_report(folder, _tracking(records[0]), link)
    if link.failure:
        raise UserError(f"W&B: {sent} of {len(pending)} runs sent, then {link.failure}; sync again later")
    rest = f"there already: {len(ended) - sent}, not ended: {len(records) - len(ended)}"
    return f"{folder.name}: runs sent: {sent}, {rest}"


def send_report(folder: Path, to: TrackingConfig, link: tracking.Connection | None = None) -> None:
    """The summary run of a sweep, from what ``python -m wn.report`` left, if anything."""
    if (folder / "report/summary.json").is_file():
        (link or tracking.connection(to.mode)).each([functools.partial(_copy_report, folder, to)])


def _copy_report(folder: Path, to: TrackingConfig, mode: str) -> None:
    """Figures, the points as a table, and a chart of y over x (a learning rate as its logarithm)."""
    wandb, report = tracking.load_wandb(), folder / "report"
    made = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    x, y, line = made["x"], made["y"], made["line"]
    with (report / made["points"]).open(encoding="utf-8", newline="") as file:
        points = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]
    scale = math.log10 if x.rpartition(".")[2].startswith("lr") else float
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for point in points:
        if isinstance(place := point[x], float) and isinstance(height := point[y], float):
            xs, ys = lines.setdefault(str(point[line]), ([], []))
            xs.append(scale(place))
            ys.append(height)
    xname = f"log10 {x}" if scale is math.log10 else x
    axes = [[drawn[i] for drawn in lines.values()] for i in (0, 1)]
    shown = {f"figures/{Path(name).stem}": wandb.Image(str(report / name)) for name in made["figures"]}
    if points:
        data = [list(point.values()) for point in points]
        shown["curves"] = wandb.Table(columns=list(points[0]), data=data)
    if lines:  # none where no run has the measurement: all have diverged
        title = f"{y} over {x}"
        shown["robustness"] = wandb.plot.line_series(*axes, keys=list(lines), title=title, xname=xname)
    identity = {"id": f"{folder.name[:56]}-summary", "name": "summary", "group": folder.name}
    run = tracking.init(to, folder, mode, **identity, job_type="summary")
    run.log(shown)
    run.finish()


def _value(text: str) -> float | str | None:
    """A number of a CSV file, or its text; None for an empty field and for a NaN."""
    try:
        number = float(text or "nan")
    except ValueError:
        return text
    return None if math.isnan(number) else number


def _is_online(record: Record) -> bool:
    try:
        note = json.loads((record.folder / "tracking.json").read_text(encoding="utf-8"))
        return bool(note["state"] == "online")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _tracking(record: Record) -> TrackingConfig:
    config = record.content["config"]
    taken_over = config["experiment_name"] != record.content["experiment"]  # with its sweep's group
    return TrackingConfig.model_validate(config["tracking"] | ({"group": None} if taken_over else {}))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m wn.sync", description="Send records to W&B.")
    parser.add_argument("name", help="of the experiment")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--again", action="store_true", help="send those again that are there")
    arguments = parser.parse_args()
    try:
        print(sync(arguments.runs_dir / arguments.name, arguments.again))
    except (UserError, OSError, KeyboardInterrupt) as end:
        return tell(end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
