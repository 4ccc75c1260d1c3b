"""Where configs/ and experiments/ are: beside the package in a checkout, inside it where it is installed.

An installed project also finds those of the current folder. In a checkout the user's files are among the
project's.
"""

from __future__ import annotations

from pathlib import Path

from wn.config.errors import UserError

PACKAGE = Path(__file__).parents[1]
INSTALLED = (PACKAGE / "share").is_dir()
ROOT = PACKAGE / "share" if INSTALLED else PACKAGE.parent


def folders(project: Path) -> list[Path]:
    """One of the project's folders, and the user's own of that name, if there is one."""
    own = Path(project.name)
    return [project, own] if INSTALLED and own.is_dir() else [project]


def find(project: Path, name: str) -> Path:
    """A file of these folders; a UserError where both have it. Where neither has, it is one that is not."""
    found = [path for folder in folders(project) if (path := folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[1]}: the project has one of that name; give yours another")
    return found[0] if found else project / name
