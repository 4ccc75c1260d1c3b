"""The user's own files, known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from wn.config.errors import UserError


def hashes(paths: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of files, by their names; UserError where one is not there, or two of one name differ."""
    found: dict[str, str] = {}
    for path in map(Path, dict.fromkeys(paths)):
        if not path.is_file():
            raise UserError(f"plugins={path}: no such file")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if found.setdefault(path.name, sha256) != sha256:
            raise UserError(f"plugins={path}: another file of this name is there already; rename one")
    return found
