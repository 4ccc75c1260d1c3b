"""Which code made a record, and on what kind of machine: never its name, its user or its paths."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

DECIDING = (
    *("config/models.py", "data", "grammar.py", "metrics.py", "models", "norm", "optim.py", "stack.py"),
    *("step.py", "trainer.py"),
)
"""Of ``wn``: the code that decides numbers."""

THEN = ", then "
"""Between the devices, commits and versions of a run that was resumed with others."""


@functools.cache
def provenance(device: str) -> dict[str, Any]:
    """For ``record.json``; cached, as asking git takes a while."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core")
    return {
        **git_state(),
        "source": source(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
    }


@functools.cache
def source(package: Path = ROOT / "wn") -> str:
    """Twelve hexadecimal digits: SHA-256 of the files in :data:`DECIDING`, names and bytes."""
    places = [package / name for name in DECIDING]
    files = [
        file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]
    digests = [
        f"{f.relative_to(package).as_posix()} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files
    ]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:12]


def code_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """Of a provenance, what is kept of each piece of a run that was cut short."""
    return {key: made[key] for key in ("commit", "dirty", "source")} | {"torch": made["packages"]["torch"]}


def began_with(pieces: Sequence[Mapping[str, Any]]) -> str:
    """What to tell of a run of which some piece has other code or torch than the first; else nothing."""
    first = pieces[0]
    if len({(piece["source"], piece["torch"]) for piece in pieces}) == 1:
        return ""
    commit = str(first["commit"])[:12] if first["commit"] else "no known commit"
    return f"began with other code (commit {commit}, torch {first['torch']}), and its record says so"


def other_code(made: Mapping[str, Any]) -> str:
    """What to tell of a record whose code decided numbers in another way than today's may; else nothing.

    Records that name no ``source`` are older than this check.
    """
    if made.get("source", source()) == source():
        return ""
    commit = f"commit {str(made['commit'])[:12]}" if made.get("commit") else "no commit is known"
    changed = ", with changes" if made.get("dirty") else ""
    return f"trained by other code: {commit}{changed}; trainer.force=true trains again"


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Commit, and whether what decides the numbers differs from it; None where ``root`` is no checkout."""
    if not is_checkout(root):
        return {"commit": None, "dirty": None}
    changed, head = (
        ask_git(root, *words)
        for words in (("status", "--porcelain", "--", "wn", "configs", "experiments"), ("rev-parse", "HEAD"))
    )
    commit = None if head is None else head.decode().strip()
    return {"commit": commit, "dirty": None if changed is None else bool(changed.strip())}


def is_checkout(root: Path) -> bool:
    """Whether ``root`` is the top of a repository: a surrounding one would be another project's."""
    top = ask_git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(os.fsdecode(top).strip()).resolve() == root.resolve()


def ask_git(root: Path, *words: str) -> bytes | None:
    """What git prints of the repository at ``root``, and not of that in GIT_DIR; None where it fails."""
    located = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in located}
    try:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
