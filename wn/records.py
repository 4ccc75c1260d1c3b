"""The record: what a run leaves on disk, and the truth that tables, figures and W&B are made from.

``runs/<experiment>/<run_id>/`` holds

- ``record.json``: configuration, provenance, status and results; replaced as a whole, atomically;
- ``metrics.jsonl``: a line per epoch (losses in nats, errors as fractions); only ever appended to;
- ``probes.jsonl``: a line per layer and probe (see :mod:`wn.probes`); likewise;
- ``reconstructions.png``, ``samples.png``: of a VAE, at the end (see :func:`wn.evaluation.pictures`);
- ``lock``: held by the process that trains the run; the kernel frees it when that process dies.

A status is ``running`` (or was, when its process died), ``finished``, ``diverged`` or ``failed``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock

from wn.config import SCHEMA, Config, UserError

Row = dict[str, Any]

DONE = ("finished", "diverged")
"""Statuses that are results: such a run is never trained again."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a kill, sees the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def to_json(tree: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity become null."""

    def finite(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: finite(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [finite(value) for value in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(finite(tree), indent=indent, allow_nan=False)


def _unwritable(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or type(error).__name__
    return UserError(f"{folder}: cannot be written to ({reason}); name another folder with runs_dir=...")


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``.jsonl`` file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline was cut short
    return [json.loads(line) for line in lines]


class Record:
    """One run's folder. ``content`` is what ``record.json`` holds."""

    def __init__(self, folder: Path, content: Row) -> None:
        self.folder = folder
        self.content = content
        self._lock = filelock.FileLock(folder / "lock")

    @classmethod
    def of(cls, config: Config) -> Record:
        """The record of a run, read from disk where there is one.

        Raises:
            UserError: the runs folder cannot be written to, or the record cannot be read.
        """
        folder = Path(config.runs_dir) / config.experiment_name / config.run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        if (folder / "record.json").exists():
            return cls.read(folder)
        return cls(folder, {"schema": SCHEMA, "run_id": config.run_id, "status": "new"})

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record in a folder, without changing anything there."""
        try:
            record = cls(folder, json.loads((folder / "record.json").read_text()))
            record.status  # noqa: B018 - a record without one is none
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{folder / 'record.json'}: unreadable ({error}); delete that folder") from None
        return record

    @property
    def status(self) -> str:
        """``new``, ``running``, ``finished``, ``diverged`` or ``failed``."""
        return str(self.content["status"])

    @property
    def done(self) -> bool:
        """Whether the run has its result."""
        return self.status in DONE

    @property
    def metrics(self) -> list[Row]:
        """A row per epoch, the first of them before training."""
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def probes(self) -> list[Row]:
        """A row per layer and probe."""
        return read_rows(self.folder / "probes.jsonl")

    def claim(self) -> bool:
        """Take the run for this process; False where another process is training it.

        The record is read again under the lock: the other process may have finished it.
        """
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        if (self.folder / "record.json").exists():
            self.content = Record.read(self.folder).content
        return True

    def release(self) -> None:
        """Give the run back."""
        self._lock.release()

    def save(self, **changes: Any) -> None:
        """Update ``record.json``."""
        self.content.update(changes)
        write_atomically(self.folder / "record.json", (to_json(self.content, indent=1) + "\n").encode())

    def save_picture(self, name: str, png: bytes) -> None:
        """Write a picture."""
        write_atomically(self.folder / f"{name}.png", png)

    @property
    def pictures(self) -> dict[str, Path]:
        """The pictures that there are, by name."""
        return {path.stem: path for path in sorted(self.folder.glob("*.png"))}

    def begin(self, config: Config, stack: list[str], device: str) -> None:
        """Say that training starts: what is trained, by which code, on what; nothing earlier is left."""
        self.content = {key: self.content[key] for key in ("schema", "run_id")}
        self.save(
            experiment=config.experiment_name,
            norm=config.norm.label,
            status="running",
            config=public_config(config),
            stack=stack,
            engine={"stack_size": len(stack), "compiled": config.trainer.compile},
            provenance=provenance(device),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def append(self, metrics: Iterable[Row], probes: Iterable[Row]) -> None:
        """Append rows to ``metrics.jsonl`` and ``probes.jsonl``."""
        for name, rows in (("metrics", metrics), ("probes", probes)):
            text = "".join(to_json(row) + "\n" for row in rows)
            if text:
                with open(self.folder / f"{name}.jsonl", "a") as file:
                    file.write(text)

    def rewind(self, step: int) -> None:
        """Forget the rows after ``step``: training goes on from there."""
        for name in ("metrics", "probes"):
            path = self.folder / f"{name}.jsonl"
            rows = [row for row in read_rows(path) if row["step"] <= step]
            if path.exists():
                write_atomically(path, "".join(to_json(row) + "\n" for row in rows).encode())


def adopt(config: Config) -> bool:
    """Where another experiment has finished the same run, copy its record; say whether it did."""
    here = Record.of(config)
    for folder in sorted(Path(config.runs_dir).glob(f"*/{config.run_id}")):
        if folder == here.folder or not (folder / "record.json").exists():
            continue
        there = Record.read(folder)
        if not there.done or not here.claim():
            continue
        if not here.done:
            rows = [folder / name for name in ("metrics.jsonl", "probes.jsonl") if (folder / name).exists()]
            for path in [*rows, *there.pictures.values()]:
                shutil.copyfile(path, here.folder / path.name)
            here.content = there.content
            here.save(experiment=config.experiment_name)
        here.release()
        return True
    return False


def read_experiment(runs_dir: Path, experiment: str) -> Iterator[Record]:
    """The records of an experiment, ordered by run_id."""
    for path in sorted((runs_dir / experiment).glob("*/record.json")):
        yield Record.read(path.parent)


def public_config(config: Config) -> Row:
    """The configuration without what is of this machine alone (folders)."""
    tree = config.model_dump(mode="json")
    del tree["runs_dir"], tree["data"]["root"]
    return tree


@functools.cache
def provenance(device: str) -> Row:
    """Which code, which packages, what kind of machine: never its name, its user or its paths."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core")
    return {
        **git_state(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
    }


def cpu_name() -> str:
    """The processor's model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> Row:
    """Commit, and whether what decides the numbers differs from it; None outside a checkout."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changed = git("status", "--porcelain", "--", ".", "../configs", "../experiments")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}
