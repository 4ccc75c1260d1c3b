"""Results that are there already: taken over from other experiments, or replaced by a training anew.

With ``trainer.force`` a run trains in ``<experiment>/again/<run_id>``, from where it resumes like any other.
When it is done its folder takes the place of the old one, which is kept in ``<experiment>/before/``.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from wn.records import ROWS, Record

log = logging.getLogger(__name__)


def reuse(records: Iterable[Record], dry: bool = False) -> set[str]:
    """Copy the results that other experiments beside them have of the same runs; return their run_ids.

    What was trained again and not yet in its place, because a kill came in between, is taken over too.
    ``dry`` copies nothing.
    """
    records, beside = list(records), defaultdict(list)
    for runs_dir in {here.folder.parents[1] for here in records}:  # listed once, however many runs
        for folder in sorted([*runs_dir.glob("*/again/*"), *runs_dir.glob("*/*")]):
            beside[folder.name].append(folder)

    def taken(here: Record) -> bool:
        others = (folder for folder in beside[here.folder.name] if folder != here.folder)
        return any(Record.peek(folder).done if dry else _copy_result(folder, here) for folder in others)

    return {here.folder.name for here in records if taken(here)}


def _copy_result(folder: Path, here: Record) -> bool:
    there = Record.peek(folder)
    if not there.done or not here.claim():
        return False
    if not here.done:
        copies = [*map(folder.joinpath, ROWS), folder / "model.safetensors", *there.pictures.values()]
        for path in filter(Path.exists, copies):
            shutil.copyfile(path, here.folder / path.name)
        here.content = there.content
        here.save(experiment=here.folder.parent.name)
    here.release()
    return True


def place_of(again: Record) -> Record:
    """The record whose place a run takes that is trained again."""
    return Record(again.folder.parents[1] / again.folder.name)


def replace(again: Record) -> Record:
    """Put a run that was trained again in its place, and the old record into ``before/``.

    A kill leaves the old record where it was, or a folder without one, which :func:`reuse` fills.
    """
    place = place_of(again)
    if not place.claim():
        log.warning("%s: in training elsewhere; the new one stays in %s", place.folder, again.folder)
        return again
    if not (again.folder / "record.json").exists():  # another process was quicker
        place.release()
        return place
    if place.status != "new":
        _keep(place.folder, place.folder.parent / "before")
        (place.folder / "record.json").unlink()
    for path in place.folder.iterdir():
        if path.name != "lock" and ".damaged" not in path.name:
            path.unlink()
    for path in again.folder.iterdir():
        if path.name not in ("lock", "record.json"):
            shutil.copyfile(path, place.folder / path.name)
    place.content = again.content
    place.save()
    place.release()
    shutil.rmtree(again.folder)
    return place


def _keep(folder: Path, before: Path) -> None:
    """Copy a run's folder to ``before/<run_id>``, ``<run_id>.2``, ...: all of it, or nothing."""
    scratch = before / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns("lock"))
    names = (f"{folder.name}{number}" for number in ("", *(f".{n}" for n in range(2, 1000))))
    os.replace(scratch, next(path for path in map(before.joinpath, names) if not path.exists()))
