"""Measurements: which function measures a claim, in which parts, and where their rows are kept.

A part is what a kill may cost: a file ``runs/claims/ID/PART.json`` is written when it is complete, and a
part with a file of the same criterion is not measured again.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import wn.claims
from wn.claims import criteria
from wn.claims.rows import Measured, Row, read
from wn.config import UserError
from wn.provenance import provenance
from wn.records import to_json, write_atomically
from wn.resources import device_name
from wn.run import RunFailed
from wn.stops import StopWatcher


class Part(NamedTuple):
    """A piece of a measurement, of seconds to some minutes: a name that a file can have, and its function."""

    name: str
    measure: Callable[[], list[Row]]


def file_name(*words: str, comma: str = "-") -> str:
    """A part's name from words, as a condition.

    >>> file_name("mlp, SGD", "held weights"), file_name("mlp, SGD", comma="_")
    ('mlp-SGD-held-weights', 'mlp_SGD')
    """
    return "-".join(words).replace(", ", comma).replace(" ", "-")


Measurement = TypeVar("Measurement", bound=Callable[..., Iterator[Part]])

MEASUREMENTS: dict[str, functools.partial[Iterator[Part]]] = {}


def measurement(claim: str, *arguments: object) -> Callable[[Measurement], Measurement]:
    """Register what measures a claim, with the arguments that tell it from the same claim elsewhere."""

    def register(function: Measurement) -> Measurement:
        known = MEASUREMENTS.setdefault(claim, functools.partial(function, *arguments))
        if known.func is not function:
            raise ValueError(f"{claim} has a measurement already")
        return function

    return register


def families() -> dict[str, list[str]]:
    """Modules of this package that measure, and the claims that each measures."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(wn.claims.__path__):
        if module.name != "__main__":
            importlib.import_module(f"wn.claims.{module.name}")
    for claim, function in MEASUREMENTS.items():
        found.setdefault(function.func.__module__.rpartition(".")[2], []).append(claim)
    return found


def measure_family(max_minutes: float | None, names: list[str]) -> None:
    """Measure claims one after the other, on one thread, in a process that may know no measurement yet.

    What cannot be measured, as its data are nowhere, is left out with a line: the others do without.
    """
    families()
    torch.set_num_threads(1)
    _made()  # before anything is measured: what is committed meanwhile is not what measures
    # Of the clock alone: a signal ends a part at once or, where it trains, after a step that is saved.
    watcher = StopWatcher(max_minutes)
    for name in names:
        try:
            measure(name, watcher)
        except (UserError, RunFailed, ArithmeticError) as error:  # the last where what it looks at diverged
            left_out(name, error)


def left_out(name: str, error: Exception) -> None:
    print(f"{name} is left out: {error}", file=sys.stderr, flush=True)


def _made() -> dict[str, Any]:
    return provenance(device_name(torch.device("cpu")))


def measured(name: str, part: Part) -> bool:
    """Whether a part has a file that counts: complete, of this criterion, and not made by changed code."""
    done = _current(name, part)
    return done is not None and not done.dirty


def complete(name: str) -> bool:
    """Whether a claim has a file of each of its parts, by the criterion as it is now."""
    try:
        return all(_current(name, part) is not None for part in MEASUREMENTS[name]())
    except UserError:
        return False


def _current(name: str, part: Part) -> Measured | None:
    """What the file of a part holds, where it is of the criterion as it is now."""
    done = read(_file(name, part))
    return done if done is not None and done.criterion == criteria.digest_of(name) else None


def _file(name: str, part: Part) -> Path:
    return Path("runs") / "claims" / name / f"{part.name}.json"


def measure(name: str, watcher: StopWatcher) -> None:
    """Measure the parts of a claim that are not measured yet.

    Raises:
        Preempted: the time is over, or another process was asked to stop; parts that are complete are kept.
        UserError: a row is of no condition of the criterion's.
    """
    claim, criterion = criteria.load(name), criteria.digest_of(name)
    for part in MEASUREMENTS[name]():
        if measured(name, part):
            continue
        if stop := watcher.stop(f"before {name}, {part.name}"):
            raise stop
        begun = time.perf_counter()
        rows = part.measure()
        seconds = round(time.perf_counter() - begun, 2)
        if unknown := {row["condition"] for row in rows} - set(claim.conditions):
            raise UserError(f"{name}: {min(unknown)}: no condition of experiments/claims/{name}.yaml")
        made = _made()
        path = _file(name, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = Measured(
            criterion=criterion,
            commit=made["commit"],
            dirty=made["dirty"],
            device=made["device"],
            torch=made["packages"]["torch"],
            seconds=seconds,
            rows=[dict(row) for row in rows],
        )
        write_atomically(path, to_json(content.model_dump()).encode())
        uncommitted = ", which do not count: the code has uncommitted changes" * bool(made["dirty"])
        print(f"{name} {part.name}: {len(rows)} rows in {seconds:.0f} s{uncommitted}", flush=True)
