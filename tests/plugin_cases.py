"""A user's own file, with a norm."""

from __future__ import annotations

from pathlib import Path

NORM = """
from wn import plugins
from wn.norm import NormalizedLayer

@plugins.norm("mine")
class Mine(NormalizedLayer):
    pass
"""


def own(folder: Path, text: str = NORM, name: str = "own.py") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)
