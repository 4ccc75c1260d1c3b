"""The W&B mirror of the records.

A run is copied while it trains (:class:`LiveMirror`), when it is done (:func:`mirror_all`), or later by
``python -m wn.sync NAME``; and as often as one likes, since its id is always the same and its rows carry
their step: W&B drops those it has. ``tracking.json`` in a record's folder says where its copy is.

W&B can neither end nor hold up a sweep: its code runs in daemon threads (:func:`_answers`), so that what it
raises, SystemExit too, never reaches the training, and all waits for it share a budget (:data:`PATIENCE`).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from wn.config import TrackingConfig
from wn.records import Record, Row, write_atomically

log = logging.getLogger("wn.tracking")

PATIENCE = {"online": 16.0, "offline": 8.0}
"""Seconds that a process waits for W&B in a mode, in all, beyond a second for each call."""

TIMEOUT = 12.0  # seconds that W&B gives itself to start a run, and to send its last rows
SENDERS = 16  # runs that are copied at once: each mostly waits for the network

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


def _answers(calls: Sequence[Callable[[], Any]], seconds: float) -> list[Any]:
    """What each call returns or raises; a TimeoutError for one that has not answered in time."""
    deadline, slots = time.monotonic() + seconds, threading.Semaphore(SENDERS)
    answers: list[Any] = [TimeoutError("no answer in time")] * len(calls)

    def work(i: int) -> None:
        with slots:
            try:
                if time.monotonic() < deadline:
                    answers[i] = calls[i]()
            except BaseException as error:  # in a thread, so it is not the user's Ctrl-C
                answers[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return answers[:]  # what comes later is not seen


def trial() -> bool:
    """Whether ``wandb agent`` started this process: then W&B gives every run in it the trial's id."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


class Connection:
    """How this process reaches W&B; the mode (online, offline, disabled) only ever degrades.

    After a failure it is the next mode, with a warning; without ``fallback`` the failure ends the mirror.
    """

    def __init__(self, mode: str, fallback: bool = True) -> None:
        self.mode, self.fallback, self.failure = mode, fallback, ""
        self._left = dict(PATIENCE)

    def each(self, calls: Sequence[Callable[[str], Any]], retry: bool = True) -> list[Any]:
        """What the calls return, given the mode; None for one that failed, after a retry in the next mode."""
        results: list[Any] = [None] * len(calls)
        todo = list(range(len(calls)))
        while todo and self.mode != "disabled":
            mode, began = self.mode, time.monotonic()
            bound = [functools.partial(calls[i], mode) for i in todo]
            answers = dict(zip(todo, _answers(bound, max(0.0, self._left[mode]) + len(todo)), strict=True))
            self._left[mode] -= max(0.0, time.monotonic() - began - len(todo))
            failed = {i: answer for i, answer in answers.items() if isinstance(answer, BaseException)}
            for i in answers.keys() - failed:
                results[i] = answers[i]
            if failed:
                self._degrade(next(iter(failed.values())))
            todo = list(failed) if retry else []
        return results

    def _degrade(self, error: BaseException) -> None:
        """Go on in the next mode, with a new service of W&B's: the old one keeps the ids of failed runs."""
        why = " ".join(str(error).split()) or type(error).__name__
        online, self.mode = self.mode == "online", "disabled"
        if not self.fallback:
            self.failure = why
        elif online:
            self.mode = "offline"
            log.warning("W&B: %s; runs are kept offline, send them with `python -m wn.sync NAME`", why)
        else:
            log.warning("W&B: %s; runs are not mirrored, their records are complete", why)
        _answers([lambda: load_wandb().teardown()], 2.0)  # it waits for what hangs


class LiveMirror:
    """One record's run on W&B while it trains. No method raises; after a failure they do nothing."""

    def __init__(self, record: Record, tracking: TrackingConfig) -> None:
        self._connection = connection(tracking.mode)
        (self._run,) = self._connection.each([functools.partial(_begin, record, tracking)])
        if self._run is not None and not self._run.offline:
            log.info("W&B: %s", self._run.url)

    def log(self, metrics: Iterable[Row], probes: Iterable[Row]) -> None:
        """Send rows of ``metrics.jsonl`` and ``probes.jsonl``, none earlier than those sent before."""
        self._use(lambda run: _log(run, metrics, probes))

    def finish(self, record: Record) -> None:
        """Send the status and the results, and wait until W&B has everything."""
        self._use(lambda run: _finish(run, record))

    def pause(self) -> None:
        """Leave the copy of a run that was preempted and is to go on."""
        self._use(_pause)

    def _use(self, action: Callable[[Any], Any]) -> None:
        if (run := self._run) is not None:
            (answer,) = self._connection.each([lambda _: (run, action(run))], retry=False)
            self._run = None if answer is None else run


def mirror_all(records: Iterable[Record], tracking: TrackingConfig) -> None:
    """Copy records whole, in bulk: offline in 0.03 CPU seconds each, of which W&B's init takes half."""
    send([(record, tracking) for record in records], connection(tracking.mode))


def send(pairs: Sequence[tuple[Record, TrackingConfig]], connection: Connection) -> int:
    """Copy records to where they belong; how many copies are finished."""
    calls = [functools.partial(_copy, *pair) for pair in pairs]
    # The first goes alone: it finds out, once for all, how W&B can be reached.
    return sum(note is not None for part in (calls[:1], calls[1:]) for note in connection.each(part))


@functools.cache
def connection(wanted: str) -> Connection:
    """The process's connection for a ``tracking.mode``."""
    return Connection(available(wanted))


def available(wanted: str) -> str:
    """The mode that is wanted, or the one below that settings and keys allow. Never a prompt."""
    if wanted in ("offline", "disabled"):
        return wanted
    try:
        # The variable alone spares the import; without it `wandb offline` may have said the same.
        setting = os.environ.get("WANDB_MODE") or load_wandb().setup().settings.mode
        if setting == "disabled":
            return setting
        known = setting not in ("offline", "dryrun") and load_wandb().login(prompt=False, verify=False)
    except (Exception, SystemExit) as error:
        log.warning("W&B: %s; runs are kept offline", " ".join(str(error).split()))
        return "offline"
    if wanted == "online" and not known:
        log.warning("W&B: not logged in; runs are kept offline. Run `wandb login` or set WANDB_API_KEY")
    return "online" if known else "offline"


def load_wandb() -> Any:
    """The module, imported late because that takes a second, and told to be quiet."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no traceback of ours, with its folders, to W&B
    import wandb

    settings: Any = {**PRIVATE, "init_timeout": TIMEOUT, "finish_timeout": TIMEOUT}
    wandb.setup(settings=wandb.Settings(**settings))
    return wandb


def init(tracking: TrackingConfig, folder: Path, mode: str, **identity: Any) -> Any:
    """A W&B run with its files in ``folder/wandb``; W&B's own variables win over our defaults."""
    default = tracking.project == TrackingConfig().project
    project = (default and os.environ.get("WANDB_PROJECT")) or tracking.project
    identity |= {"project": project, "entity": tracking.entity or os.environ.get("WANDB_ENTITY")}
    if trial():
        identity |= dict.fromkeys(("id", "project", "entity"))  # the agent's
    return load_wandb().init(mode=mode, dir=str(folder), resume="allow", reinit="create_new", **identity)


def _begin(record: Record, tracking: TrackingConfig, mode: str) -> Any:
    """A record's W&B run with the rows that there are."""
    content = record.content
    experiment, norm = content["experiment"], content["norm"]
    config = {key: value for key, value in content["config"].items() if key != "tracking"}
    shown = {**config, "experiment_name": experiment, "norm": {"name": norm, **config["norm"]}}
    run = init(
        tracking,
        record.folder.parent,
        mode,
        id=f"{experiment[:51]}-{content['run_id']}",  # W&B takes 64 letters
        name=f"{norm} lr={config['optim']['lr']:g} seed={config['seed']}",
        group=tracking.group or os.environ.get("WANDB_RUN_GROUP") or experiment,
        job_type=norm,
        tags=[config["model"]["name"], config["data"]["name"]],
        config={**shown, "run_id": content["run_id"], "provenance": content.get("provenance")},
    )
    for axis, rows in (("epoch", "metrics/*"), ("step", "probes/*")):
        run.define_metric(axis, hidden=True)
        run.define_metric(rows, step_metric=axis)
    _log(run, record.metrics, record.probes)
    return run


def _log(run: Any, metrics: Iterable[Row], probes: Iterable[Row]) -> None:
    """Send rows as W&B wants them: one per step, a layer's probes under its name."""
    merged: dict[int, Row] = {}
    for row in (*metrics, *probes):
        step = merged.setdefault(row["step"], {"epoch": row["epoch"], "step": row["step"]})
        path = f"probes/{row['layer']}" if "layer" in row else "metrics"
        values = {k: v for k, v in row.items() if k not in ("epoch", "step", "layer") and v is not None}
        step.update({f"{path}/{key}": value for key, value in values.items()})
    for number, row in sorted(merged.items()):
        run.log(row, step=number)


def _finish(run: Any, record: Record) -> Row:
    """Send pictures, status and results; what ``tracking.json`` now says."""
    content, state = record.content, "offline" if run.offline else "online"
    note = {"state": state, "project": run.project, "id": run.id, "url": None if run.offline else run.url}
    if pictures := record.pictures:
        images = {f"pictures/{name}": load_wandb().Image(str(path)) for name, path in pictures.items()}
        run.log(images, step=content["steps"])
    flat = {"status": content["status"], "seconds": content.get("seconds")}
    for part in ("initial", "final", "best", "diverged_at"):
        flat |= {f"{part}/{key}": value for key, value in (content.get(part) or {}).items()}
    # W&B would drop a NaN.
    run.summary.update({k: "NaN" if v != v else v for k, v in flat.items() if v is not None})
    run.finish(exit_code=0 if record.done else 1)
    write_atomically(record.folder / "tracking.json", (json.dumps(note, indent=1) + "\n").encode())
    return note


def _pause(run: Any) -> None:
    run.mark_preempting()
    run.finish(exit_code=1)


def _copy(record: Record, tracking: TrackingConfig, mode: str) -> Row:
    return _finish(_begin(record, tracking, mode), record)
