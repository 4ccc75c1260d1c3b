"""The record: what a run leaves on disk, and the truth that tables, figures and W&B are made from.

``runs/<experiment>/<run_id>/`` holds

- ``record.json``: configuration, provenance, status and results; replaced as a whole, atomically;
- ``metrics.jsonl``: a line per epoch (losses in nats, errors as fractions); only ever appended to;
- ``probes.jsonl``: a line per layer and probe (:mod:`wn.probes`); likewise;
- ``reconstructions.png``, ``samples.png``: of a VAE, at the end (:func:`wn.metrics.pictures`);
- ``model.safetensors``: the trained model, where it is kept (:mod:`wn.trained`);
- ``tracking.json``: where its copy on W&B is (:mod:`wn.tracking`);
- ``*.damaged``: what could not be read, and was set aside;
- ``lock``: held by the process that trains the run; the kernel frees it when that process dies.

A status is ``running`` (or was, when its process died), ``finished``, ``diverged`` or ``failed``. A damaged
file is named, set aside when its run is trained again, and until then the run counts as not done.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
import pydantic
import pydantic_core

from wn.config import SCHEMA, Config, UserError
from wn.config.errors import ends_training
from wn.provenance import provenance

log = logging.getLogger(__name__)

Row = dict[str, Any]
ROWS = ("metrics.jsonl", "probes.jsonl")
DONE = ("finished", "diverged")  # results: such a run is never trained again


class Content(pydantic.BaseModel):
    """The keys of ``record.json`` that others read, and their types."""

    model_config = pydantic.ConfigDict(strict=True)

    version: int = pydantic.Field(alias="schema")
    run_id: str
    status: Literal["running", "finished", "diverged", "failed"]
    experiment: str
    norm: str
    config: Row
    provenance: Row
    stack: list[str] = []
    engine: Row = {}
    initial: Row = {}
    final: Row = {}
    best: Row = {}
    seconds: float = 0.0
    diverged_at: Row = {}
    error: str = ""


class Damaged(UserError, ValueError):
    """A file of a record holds something else than a trainer writes."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: damaged ({reason})")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file; readers, and a kill, see either the old or the new file."""
    # Without fsync: it would protect from a loss of power alone, and cost more than a short run.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def to_json(tree: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity become null."""
    return pydantic_core.to_json(tree, indent=indent, inf_nan_mode="null").decode()


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``.jsonl`` file; a last line that a kill cut is left out, another one is Damaged."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except IsADirectoryError:
        raise Damaged(path, "a folder") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = pydantic_core.from_json(line)
        except ValueError as error:
            raise Damaged(path, f"line {number}: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise Damaged(path, f"line {number}: no row")
        rows.append(row)
    return rows


def _unwritable(folder: Path, error: OSError) -> OSError | UserError:
    if ends_training(error):
        return OSError(error.errno, error.strerror, str(folder))
    reason = error.strerror or type(error).__name__
    return UserError(f"{folder}: cannot be written to ({reason}); name another folder with runs_dir=...")


class Record:
    """One run's folder. ``content`` is what ``record.json`` holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: Row = {"schema": SCHEMA, "run_id": folder.name, "status": "new"}
        self._lock = filelock.FileLock(folder / "lock")

    @classmethod
    def of(cls, config: Config, run_id: str | None = None) -> Record:
        """The record of a run, ``new`` where there is none or a damaged one."""
        record = cls.unread(config, run_id)
        try:
            record._load()
        except Damaged as damage:
            log.warning("%s; its run counts as not done", damage)
        return record

    @classmethod
    def unread(cls, config: Config, run_id: str | None = None) -> Record:
        """In the experiment's folder; what is trained again, in ``again`` there until it is complete."""
        again = "again" if config.trainer.force else ""
        return cls(Path(config.runs_dir, config.experiment_name, again, run_id or config.run_id))

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record in a folder; a UserError where there is none that can be read."""
        record = cls(folder)
        record._load()
        if record.status == "new":
            raise UserError(f"{folder / 'record.json'}: no such file")
        return record

    @classmethod
    def peek(cls, folder: Path) -> Record:
        """The record in a folder, ``new`` where there is none or a damaged one."""
        record = cls(folder)
        with contextlib.suppress(UserError):
            record._load()
        return record

    def _load(self) -> None:
        """Read ``record.json`` where there is one, and check the rows."""
        path = self.folder / "record.json"
        try:
            content = pydantic_core.from_json(path.read_bytes())
            Content.model_validate(content)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            raise Damaged(path, "a folder") from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise Damaged(path, " ".join([*map(str, first["loc"]), first["msg"]])) from None
        except ValueError as error:
            raise Damaged(path, str(error)) from None
        if content["status"] in DONE and (missing := {"initial", "final"} - content.keys()):
            raise Damaged(path, f"no {min(missing)}")
        for name in ROWS:
            read_rows(self.folder / name)
        self.content = content

    @property
    def status(self) -> str:
        return str(self.content["status"])

    @property
    def done(self) -> bool:
        return self.status in DONE

    @property
    def metrics(self) -> list[Row]:
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def probes(self) -> list[Row]:
        return read_rows(self.folder / "probes.jsonl")

    def claim(self) -> bool:
        """Take the run for this process; False where another one is training it.

        The record is read, as another process may have finished it; a damaged one is set aside.
        """
        if not self._lock_it():
            return False
        try:
            self._load()
        except Damaged:
            self._set_aside()
            self.content = Record(self.folder).content
        return True

    def held(self) -> bool:
        """Whether some process has claimed the run at this moment."""
        if free := self._lock_it():
            self.release()
        return not free

    def _lock_it(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        return True

    def _set_aside(self) -> None:
        """Rename everything but the lock to ``*.damaged``, ``*.damaged2``, ..."""
        for path in list(self.folder.iterdir()):
            if path.name != "lock" and ".damaged" not in path.name:
                names = (f"{path.name}.damaged{number}" for number in ("", *range(2, 1000)))
                os.replace(path, next(filter(lambda p: not p.exists(), map(path.with_name, names))))

    def release(self) -> None:
        self._lock.release()

    def save(self, **changes: Any) -> None:
        self.content |= changes
        write_atomically(self.folder / "record.json", (to_json(self.content, indent=1) + "\n").encode())

    def save_picture(self, name: str, png: bytes) -> None:
        write_atomically(self.folder / f"{name}.png", png)

    @property
    def pictures(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted(self.folder.glob("*.png"))}

    def begin(self, config: Config, stack: list[str], device: str) -> None:
        """Training starts; no result of an earlier one is left."""
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
        for name, rows in zip(ROWS, (metrics, probes), strict=True):
            if text := "".join(to_json(row) + "\n" for row in rows):
                with open(self.folder / name, "ab") as file:
                    file.write(text.encode())

    def sizes(self) -> list[int]:
        """Bytes of rows, for :meth:`rewind`."""
        return [path.stat().st_size if path.exists() else 0 for path in map(self.folder.joinpath, ROWS)]

    def rewind(self, sizes: list[int]) -> None:
        """Forget the rows after a checkpoint, when there were ``sizes`` bytes; ValueError if now fewer."""
        for name, size, there in zip(ROWS, sizes, self.sizes(), strict=True):
            if there < size:
                raise ValueError(f"rows of run {self.folder.name} are missing")
            if there > size:
                os.truncate(self.folder / name, size)


def read_experiment(runs_dir: Path, experiment: str) -> Iterator[Record]:
    """The records of an experiment, ordered by run_id; a damaged one is named and left out."""
    for path in sorted((runs_dir / experiment).glob("*/record.json")):
        try:
            yield Record.read(path.parent)
        except UserError as error:
            log.warning("%s; left out: the next training of the experiment makes it again", error)


def public_config(config: Config) -> Row:
    """Without the folders, which are this machine's, and without what was said for one time."""
    exclude: Row = {"runs_dir": True, "data": {"root"}, "trainer": {"force"}}
    return config.model_dump(mode="json", exclude=exclude)
