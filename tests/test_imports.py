"""Who may know whom: the house's layers, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest
from import_cases import MODULES, ROOT, imports, reached_from

from wn.provenance import DECIDING

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
    reached = reached_from("wn.report.__main__")
    assert len(reached) > 5
    assert not [(m, n) for m in reached for n in imports(m) if within(n, ("torch", "torchvision"))]


def test_all_that_the_trainer_reaches_decides_numbers_or_is_named_here():
    """What is named here holds settings, which a run's identity tells, or only measures."""
    deciding = {f"wn.{name.removesuffix('.py').replace('/', '.')}" for name in DECIDING}
    others = {name for name in reached_from("wn.trainer") if not within(name, deciding)}
    settings = {name for name in others if within(name, ["wn.config"])}
    assert others - settings == {"wn", "wn.plugins", "wn.presets", "wn.probes"}
