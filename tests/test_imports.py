"""Who may know whom: the house's layers, and what an import costs."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path for top in ("wn", "hydra_plugins") for path in sorted((ROOT / top).rglob("*.py"))
}
GUARDED = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "pandas", "matplotlib", "gymnasium")

KNOWS = {
    # place          what of wn it may import, and which of the guarded libraries
    "wn.grammar": "",
    "wn.presets": "grammar",
    "wn.config": "grammar presets",
    "wn.norm": "grammar presets torch",
    "wn.optim": "config torch",
    "wn.plugins": "config",
    "wn.data": "config plugins torch torchvision",
    "wn.provenance": "",
    "wn.records": "config provenance",
    "wn.timings": "config records",
    "wn.stops": "config",
    "wn.models": "config norm plugins torch",
    "wn.experiments": "config presets",
    "wn.claims": "* report torch",
    "wn.claims.games": "config torch gymnasium",  # which may be missing
    "wn.claims.criteria": "config experiments",
    "wn.claims.rows": "",
    "wn.report": "claims config grammar presets provenance records timings experiments stops "
    "pandas matplotlib",
    "wn.trainer": "config models norm data optim stack step metrics probes torch",  # and no disk
    "wn.tracking": "config records torch wandb",
    "wn.sync": "config records stops tracking",  # sends records again: not part of training
    "wn.launcher": "* hydra omegaconf",
    "wn.train": "* launcher sync hydra omegaconf",
    "hydra_plugins": "launcher hydra omegaconf",
    "wn": "* torch torchvision",  # the engine: all other modules
}
"""Who may know whom. ``*`` is all of wn but what stands above the engine: report, sync, launcher, train."""

ABOVE = ("wn.report", "wn.sync", "wn.launcher", "wn.train", "wn.claims")
DISK = ("io", "os", "pathlib", "shutil", "tempfile")


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports when it runs, inside its functions too, as absolute dotted names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def within(name: str, parents: Iterable[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("module", MODULES)
def test_module_knows_only_whom_it_may(module: str):
    place = max((place for place in KNOWS if within(module, [place])), key=len)
    words = KNOWS[place].split()
    allowed = {place, *words, *(f"wn.{word}" for word in words)} - {"wn"}
    for name in imports(module):
        if within(name, GUARDED):
            assert within(name, allowed), f"{module} imports {name}"
        elif name in MODULES and name != "wn":
            engine = "*" in words and not within(name, ABOVE)
            assert engine or within(name, allowed), f"{module} imports {name}"
        assert not (module == "wn.trainer" and within(name, DISK)), f"the trainer knows no disk, but {name}"


def test_the_table_names_places_that_exist():
    words = {word for known in KNOWS.values() for word in known.split()} - {*GUARDED, "*"}
    assert {*KNOWS, *(f"wn.{word}" for word in words)} <= {*MODULES, "hydra_plugins"}


def test_importing_the_package_is_light():
    heavy = ("wandb", "hydra", "pandas", "matplotlib", "torch")
    program = f"import wn, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"


def test_the_report_reaches_no_torch():
    """Not by way of another module either."""
    reached, waiting = set(), {"wn.report.__main__"}
    while waiting:
        reached |= waiting
        waiting = {name for module in waiting for name in imports(module) if name in MODULES} - reached
    assert len(reached) > 5
    assert not [(m, n) for m in reached for n in imports(m) if within(n, ("torch", "torchvision"))]
