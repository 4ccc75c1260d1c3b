"""The W&B mirror of the records.

The record on disk is the truth and what W&B shows is a copy. A run is copied while it trains
(:func:`open_live`), when it is done (:func:`mirror_all`) or later, by
``python -m wn.tracking sync EXPERIMENT``; and as often as one likes, since its id is always the same
and its rows carry their step: W&B drops the rows that it has.

Nothing that happens to W&B costs a run. Each failure takes this process a step down, from online to
offline to nothing, with one warning. ``tracking.json`` in a record's folder says where its copy is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from wn import experiments, report
from wn.config import TrackingConfig, UserError, nearest
from wn.records import Record, Row, read_experiment, write_atomically

log = logging.getLogger("wn.tracking")
P = ParamSpec("P")

INIT_TIMEOUT = 20.0
"""Seconds that W&B has to answer before a run is kept offline."""

FINISH_TIMEOUT = 60.0
"""Seconds that the last rows of a run have to reach W&B."""

SENDERS = 16
"""Runs that are sent at once: each mostly waits for the network."""

PRIVATE = {
    "host": "",
    "program": "",
    "label_disable": True,  # what it reads in the script
    "disable_git": True,
    "x_disable_machine_info": True,  # hardware, folders, command line
    "x_save_requirements": False,  # the record names the packages that matter
    "console": "off",
    "silent": True,
    "finish_timeout_raises": True,
}
"""W&B's settings for sending what a record holds and no more, in silence."""


def _guarded(method: Callable[Concatenate[Live, P], None]) -> Callable[Concatenate[Live, P], None]:
    """Let nothing that fails out of a method; after a failure there is no W&B run to talk to."""

    @functools.wraps(method)
    def guarded(self: Live, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._run is None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._run = None
            self._link.step_down(self._mode, error)

    return guarded


class Live:
    """One record's run on W&B. No method raises; after a failure they do nothing.

    Attributes:
        url: where to look at it; None offline.
        state: ``online`` or ``offline``, where the finished copy is; None until then.
    """

    def __init__(self, record: Record, tracking: TrackingConfig, link: _Link) -> None:
        self.state: str | None = None
        self._link = link
        self._run = link.begin(tracking, record.folder.parent, **_identity(record.content))
        self._mode = "offline" if self._run is None or self._run.offline else "online"
        self.url: str | None = self._run.url if self._mode == "online" else None
        self._define_axes()
        self.log(record.metrics, record.probes)  # of a run that goes on

    @_guarded
    def _define_axes(self) -> None:
        for axis, rows in (("epoch", "metrics/*"), ("step", "probes/*")):
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(rows, step_metric=axis)

    @_guarded
    def log(self, metrics: Iterable[Row], probes: Iterable[Row]) -> None:
        """Send rows of ``metrics.jsonl`` and ``probes.jsonl``, none earlier than those sent before."""
        for step, row in _history(metrics, probes):
            self._run.log(row, step=step)

    @_guarded
    def finish(self, record: Record) -> None:
        """Send the status and the results, and wait until W&B has everything."""
        note = {"state": self._mode, "project": self._run.project, "id": self._run.id, "url": self.url}
        if pictures := record.pictures:
            images = {f"pictures/{name}": _wandb().Image(str(path)) for name, path in pictures.items()}
            self._run.log(images, step=record.content["steps"])
        self._run.summary.update(_summary(record.content))
        self._run.finish(exit_code=0 if record.done else 1)
        self._run = None
        self.state = self._mode
        write_atomically(record.folder / "tracking.json", (json.dumps(note, indent=1) + "\n").encode())

    @_guarded
    def pause(self) -> None:
        """Leave the copy of a run that stops and is to go on: W&B calls it preempted."""
        self._run.mark_preempting()
        self._run.finish(exit_code=1)
        self._run = None


def open_live(record: Record, tracking: TrackingConfig) -> Live:
    """The copy of a run that is about to train or to go on; its record has begun."""
    live = Live(record, tracking, _link(tracking.mode))
    if live.url:
        log.info("W&B: %s", live.url)
    return live


def mirror_all(records: Iterable[Record], tracking: TrackingConfig) -> None:
    """Copy records whole, in bulk: offline in about 0.05 seconds each."""
    _send([(record, tracking) for record in records], _link(tracking.mode))


def summarise(
    experiment: str,
    curves: Sequence[Row],
    figures: Iterable[Path],
    tracking: TrackingConfig,
    runs_dir: Path,
    axes: tuple[str, str, str] = ("lr", "error", "norm"),
) -> None:
    """The summary run of a sweep: its robustness curves as a table and a chart, and its figures.

    Args:
        experiment: its name; the group that the runs are in.
        curves: a row per point, all with the same keys.
        figures: PNG files.
        tracking: where on W&B.
        runs_dir: the folder of the records.
        axes: keys in ``curves`` of the chart's x (drawn as its logarithm), y, and what names a line.
    """
    link = _link(tracking.mode)
    identity = {"id": f"{experiment[:56]}-summary", "name": "summary", "group": experiment}
    run = link.begin(tracking, runs_dir / experiment, **identity, job_type="summary")
    if run is None:
        return
    try:
        images = {f"figures/{path.stem}": _wandb().Image(str(path)) for path in figures}
        run.log({**_curves(curves, *axes), **images})
        run.finish()
    except Exception as error:
        link.step_down("offline" if run.offline else "online", error)


def publish(experiment: str, runs_dir: Path, tracking: TrackingConfig) -> None:
    """Send the summary run of an experiment, made from its records; a name of no experiment has none."""
    if tracking.mode != "disabled" and experiment in experiments.names():
        built = report.build(experiment, runs_dir, runs_dir / experiment / "report")
        summarise(experiment, built.curves, built.figures, tracking, runs_dir, built.chart)


def sync(experiment: str, runs_dir: Path, again: bool = False) -> str:
    """Send the runs that have ended and never reached W&B (``again``: all that have ended).

    Returns:
        What was sent, in a line.

    Raises:
        UserError: no such records, no key, or W&B does not take them.
    """
    records = list(read_experiment(runs_dir, experiment))
    if not records:
        known = nearest(experiment, [path.name for path in runs_dir.glob("*") if path.is_dir()])
        raise UserError(f"{runs_dir / experiment}: no records{known}")
    ended = [record for record in records if record.status not in ("new", "running")]
    pending = [record for record in ended if again or _state(record) != "online"]
    if pending and _available("auto") != "online":
        raise UserError("W&B: no key, or WANDB_MODE forbids; run `wandb login` or set WANDB_API_KEY")
    link = _Link("online", {"online": "disabled"})
    sent = _send([(record, _tracking_of(record)) for record in pending], link)
    if sent < len(pending):
        raise UserError(f"W&B: {sent} of {len(pending)} runs sent, then {link.failure}; sync again later")
    rest = f"there already: {len(ended) - sent}, not ended: {len(records) - len(ended)}"
    return f"{experiment}: runs sent: {sent}, {rest}"


class _Link:
    """How this process reaches W&B. A failure takes it a step down, and it never comes up again."""

    def __init__(self, mode: str, below: dict[str, str] | None = None) -> None:
        self.mode = mode
        self.failure = ""
        self._below = below or {"online": "offline", "offline": "disabled"}
        self._lock = threading.Lock()

    def begin(self, tracking: TrackingConfig, folder: Path, **identity: Any) -> Any:
        """A W&B run with its files in ``folder/wandb``; None where W&B cannot start."""
        while (mode := self.mode) != "disabled":
            try:
                return _wandb().init(
                    mode=mode,
                    project=tracking.project,
                    entity=tracking.entity,
                    dir=str(folder),
                    resume="allow",
                    reinit="create_new",
                    **identity,
                )
            except Exception as error:
                self.step_down(mode, error)
        return None

    def step_down(self, mode: str, error: Exception) -> None:
        """Something failed in a mode; the first to say so is heard."""
        with self._lock:
            if self.mode != mode:
                return
            self.failure = " ".join(str(error).split()) or type(error).__name__
            below = self._below[mode]
            if below == "offline":
                later = "send them with `python -m wn.tracking sync EXPERIMENT`"
                log.warning("W&B: %s; runs are kept offline, %s", self.failure, later)
            elif mode == "offline":
                log.warning("W&B: %s; runs are not mirrored, their records are complete", self.failure)
            # W&B's service holds on to the id of a run that could not start; a new service does not.
            with contextlib.suppress(Exception, SystemExit):
                _wandb().teardown()
            self.mode = below


@functools.cache
def _link(wanted: str) -> _Link:
    """The process's link for a ``tracking.mode``."""
    return _Link(_available(wanted))


def _available(wanted: str) -> str:
    """The mode that is wanted, or the one below that settings and keys allow. Never a prompt."""
    if wanted in ("offline", "disabled"):
        return wanted
    try:
        # The variable alone spares the import; without it `wandb offline` may have said the same.
        setting = os.environ.get("WANDB_MODE") or _wandb().setup().settings.mode
        if setting == "disabled":
            return setting
        known = setting not in ("offline", "dryrun") and _wandb().login(prompt=False, verify=False)
    except Exception as error:
        log.warning("W&B: %s; runs are kept offline", " ".join(str(error).split()))
        return "offline"
    if wanted == "online" and not known:
        log.warning("W&B: not logged in; runs are kept offline. Run `wandb login` or set WANDB_API_KEY")
    return "online" if known else "offline"


def _wandb() -> Any:
    """The module, imported late because that takes a second, and told to be quiet."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no traceback of ours, with its folders, to W&B
    import wandb

    timeouts = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
    wandb.setup(settings=wandb.Settings(**PRIVATE, **timeouts))  # type: ignore[arg-type]
    return wandb


def _send(pairs: Sequence[tuple[Record, TrackingConfig]], link: _Link) -> int:
    """Copy records to where they belong; how many copies are finished."""

    def send(pair: tuple[Record, TrackingConfig]) -> bool:
        live = Live(*pair, link)
        live.finish(pair[0])
        return live.state is not None

    # The first goes alone: it finds out, once for all, how W&B can be reached.
    first, rest = pairs[:1], pairs[1:]
    with ThreadPoolExecutor(SENDERS) as pool:
        return sum(map(send, first)) + sum(pool.map(send, rest))


def _state(record: Record) -> str | None:
    """Where the record's copy is, from ``tracking.json``."""
    try:
        return str(json.loads((record.folder / "tracking.json").read_text())["state"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _tracking_of(record: Record) -> TrackingConfig:
    return TrackingConfig.model_validate({**record.content["config"]["tracking"], "mode": "online"})


def _identity(content: Row) -> Row:
    """What W&B knows a run by, and its configuration, from the content of ``record.json``."""
    experiment, norm, config = content["experiment"], content["norm"], content["config"]
    shown = {key: value for key, value in config.items() if key != "tracking"}
    shown |= {"experiment_name": experiment, "norm": {"name": norm, **config["norm"]}}
    return {
        "id": f"{experiment[:51]}-{content['run_id']}",  # W&B takes 64 letters
        "name": f"{norm} lr={config['optim']['lr']:g} seed={config['seed']}",
        "group": experiment,
        "job_type": norm,
        "tags": [config["model"]["name"], config["data"]["name"]],
        "config": {**shown, "run_id": content["run_id"], "provenance": content.get("provenance")},
    }


def _history(metrics: Iterable[Row], probes: Iterable[Row]) -> list[tuple[int, Row]]:
    """Rows as W&B wants them: one per step, a layer's probes under its name."""
    merged: dict[int, Row] = {}
    for prefix, rows in (("metrics", metrics), ("probes", probes)):
        for row in rows:
            place = {"epoch": row["epoch"], "step": row["step"]}
            path = "/".join([prefix, *([row["layer"]] if "layer" in row else [])])
            values = {k: v for k, v in row.items() if k not in (*place, "layer") and v is not None}
            step = merged.setdefault(row["step"], place)
            step.update({f"{path}/{key}": value for key, value in values.items()})
    return sorted(merged.items())


def _summary(content: Row) -> Row:
    """Status and results in one level of keys; W&B would drop a number that is none."""
    flat = {"status": content["status"], "seconds": content.get("seconds")}
    for part in ("initial", "final", "best", "diverged_at"):
        flat |= {f"{part}/{key}": value for key, value in (content.get(part) or {}).items()}
    numbers = {key: value for key, value in flat.items() if value is not None}
    return {k: "NaN" if isinstance(v, float) and math.isnan(v) else v for k, v in numbers.items()}


def _curves(curves: Sequence[Row], x: str, y: str, line: str) -> Row:
    """The curves as a table and as a chart of y over log10 x, a line for each value of ``line``."""
    wandb = _wandb()
    columns = list(curves[0])
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in (point for point in curves if point[y] is not None):
        lines.setdefault(str(point[line]), []).append((math.log10(point[x]), point[y]))
    chart = wandb.plot.line_series(
        xs=[[x for x, _ in points] for points in lines.values()],
        ys=[[y for _, y in points] for points in lines.values()],
        keys=list(lines),
        title=f"{y} over {x}",
        xname=f"log10 {x}",
    )
    table = wandb.Table(columns=columns, data=[[point[c] for c in columns] for point in curves])
    return {"curves": table, "robustness": chart}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wn.tracking", description="Send records to W&B.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "sync", help="send the recorded runs that never reached W&B, and the summary"
    )
    command.add_argument("experiment")
    command.add_argument("--runs-dir", type=Path, default=Path("runs"))
    command.add_argument("--again", action="store_true", help="send the others again, too")
    arguments = parser.parse_args()
    try:
        print(sync(arguments.experiment, arguments.runs_dir, arguments.again))
        record = next(read_experiment(arguments.runs_dir, arguments.experiment))
        publish(arguments.experiment, arguments.runs_dir, _tracking_of(record))
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
