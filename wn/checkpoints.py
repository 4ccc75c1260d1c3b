"""Checkpoints: what a stack goes on from, in two files, the newest and a backup.

A file is what ``torch.save`` writes, of tensors, numbers and lists alone, then its SHA-256 (``torch.load``
checks none). It is replaced as a whole, and any device can read what another one wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from wn.config import UserError
from wn.records import Row, write_atomically

log = logging.getLogger(__name__)

DIGEST = hashlib.sha256().digest_size

DAMAGE = (ValueError, EOFError, pickle.UnpicklingError)
"""Raised by a damaged file, or where its rows are missing."""


class OtherCode(UserError):
    """A whole checkpoint that the present code cannot take: it must not cost what was trained."""


class Checkpoints:
    """The two newest checkpoints of a stack; ``ids`` are the members' run_ids, in their places."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        name = ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:12]
        self.ids = list(ids)
        self.newest, self.before = folder / f"{name}.pt", folder / f"{name}.before.pt"

    def save(self, content: Row) -> None:
        file = io.BytesIO()
        torch.save({"runs": self.ids, **content}, file)
        self.newest.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.newest, self.before)
        write_atomically(self.newest, file.getvalue() + hashlib.sha256(file.getbuffer()).digest())

    def restore(self, use: Callable[[Row], None]) -> bool:
        """Call ``use`` with the newest content that it can take; say whether there was any.

        A file that is damaged, or that ``use`` finds so by a ValueError, is logged and deleted: the next save
        would rotate it into the backup.

        Raises:
            OtherCode: ``use`` lacks something in a file that is whole.
        """
        paths = [path for path in (self.newest, self.before) if path.exists()]
        for path in paths:
            try:
                use(self._read(path))
                return True
            except DAMAGE as error:
                known = isinstance(error, ValueError)
                reason = " ".join(str(error).split()) if known else type(error).__name__
                then = "its runs start anew" if path is paths[-1] else "going on from the one before"
                log.warning("%s: damaged (%s); %s", path, reason, then)
                path.unlink()
            except (LookupError, TypeError, AttributeError) as error:
                why = f"written by other code ({type(error).__name__}: {error})"
                raise OtherCode(f"{path}: {why}; go on with that code, or delete it to train anew") from error
        return False

    def exist(self) -> bool:
        return self.newest.exists() or self.before.exists()

    def _read(self, path: Path) -> Row:
        whole = path.read_bytes()
        content = whole[:-DIGEST]
        if hashlib.sha256(content).digest() != whole[-DIGEST:]:
            raise ValueError("its checksum is wrong")
        found: Row = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if found["runs"] != self.ids:
            raise ValueError("it is of other runs")
        return found

    def remove(self) -> None:
        """Remove both, and what a kill has left of writing one."""
        for path in (self.newest, self.before):
            for file in (path, *path.parent.glob(f".{path.name}.*")):
                file.unlink(missing_ok=True)
