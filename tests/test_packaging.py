"""The house is in order: dependencies agree, locks are complete, and modules know only whom they may know."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "scripts/uv.lock")


def bounds(requirements: list[str]) -> dict[str, str]:
    """Canonical name -> specifier, in one spelling."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(item.name): str(item.specifier) for item in parsed}


def lines_of(lock: str) -> list[str]:
    """A lock's requirements, one a line."""
    return (ROOT / lock).read_text().replace("\\\n", " ").splitlines()


def pins() -> list[Requirement]:
    return [Requirement(line.split(" --hash=")[0]) for line in lines_of("requirements.lock")]


# Dependencies ----------------------------------------------------------------------------------------


def test_conda_environment_agrees_with_pyproject():
    *conda, from_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = bounds(conda)
    pip = bounds(from_pip["pip"])
    assert conda.pop("python") == bounds([f"python{PROJECT['requires-python']}"])["python"]
    assert conda.pop("pip") == ""
    assert set(pip) == {"torch", "torchvision"}
    assert conda | pip == bounds(PROJECT["dependencies"])


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("wanted", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_lock_pins_every_dependency_once_and_within_its_bounds(wanted: str, python: str, platform: str):
    assert python in Requirement(f"python{PROJECT['requires-python']}").specifier
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    requirement = Requirement(wanted)
    found = [
        pin.specifier
        for pin in pins()
        if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
        and (pin.marker is None or pin.marker.evaluate(environment))
    ]
    assert len(found) == 1
    (exact,) = found[0]
    assert exact.operator == "=="
    assert exact.version in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_hashes_and_names_no_host(lock: str):
    line = re.compile(r"[\w.-]+==[\w.+]+( ; [^\\#]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [text for text in lines_of(lock) if not line.fullmatch(text)] == []
    for word in ("http://", "https://", "--index-url", "--find-links", "file:"):
        assert word not in (ROOT / lock).read_text()


def test_every_import_of_the_package_is_a_declared_dependency():
    distributions = importlib.metadata.packages_distributions()
    outside = {name.split(".")[0] for module in MODULES for name in imports(module)}
    outside -= {*sys.stdlib_module_names, "wn", "omegaconf"}  # omegaconf is Hydra's own container
    declared = bounds(PROJECT["dependencies"])
    assert outside >= {"pydantic", "torch"}
    assert {name for name in outside if canonicalize_name(distributions[name][0]) not in declared} == set()


def test_no_file_names_a_package_host():
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    files = [ROOT / name for name in names if (ROOT / name).is_file()]
    host = re.compile(
        rb"(pypi|pythonhosted|anaconda|download\.pytorch|pypi\.nvidia)\.(org|com)|[a-z]/simple/"
    )
    assert ROOT / "pyproject.toml" in files
    assert [file for file in files if host.search(file.read_bytes())] == []


# Files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["configs", "experiments"])
def test_configs_and_experiments_are_yaml(folder: str):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix == ".yaml", path
        assert isinstance(yaml.safe_load(path.read_text()) or {}, dict), path


def test_license_and_citation():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 ")
    assert PROJECT["license"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Salimans", "Kingma"]
    assert paper["identifiers"][0]["value"] == "arXiv:1602.07868"


def test_every_package_is_listed_for_the_build():
    modules = [path for top in ("wn", "hydra_plugins") for path in (ROOT / top).rglob("*.py")]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in modules}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert packages == set(listed)


# Scripts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [".ci/run", "scripts/setup.sh", "scripts/quickstart.sh", "scripts/test.sh"]
)
def test_scripts_are_executable_bash(script: str):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def set_up(repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.sh of a stand-in for a clone, from elsewhere."""
    for name in ("scripts/setup.sh", "requirements.lock"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    outside = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    command = [repository / "scripts" / "setup.sh"]
    return subprocess.run(command, cwd="/", env=outside | environment, capture_output=True, text=True)


def unfit_python(path: Path) -> Path:
    """A stand-in for a version manager's stub: it exists, but says that it will not run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho not installed >&2\nexit 127\n")
    path.chmod(0o755)
    return path


def test_setup_refuses_an_unfit_python_in_one_line(tmp_path: Path):
    stub = unfit_python(tmp_path / "an old python")
    result = set_up(tmp_path / "a clone", PYTHON=str(stub))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Python 3.11, 3.12 or 3.13" in result.stderr
    assert str(stub) in result.stderr
    assert not (tmp_path / "a clone" / ".venv").exists()


def test_setup_leaves_a_finished_environment_alone_and_not_a_stale_one(tmp_path: Path):
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        path = f"{unfit_python(tmp_path / 'bin' / name).parent}:{os.environ['PATH']}"
    clone = tmp_path / "a clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(sys.executable)
    stamp = clone / ".venv" / "requirements.lock"
    shutil.copy(ROOT / "requirements.lock", stamp)
    finished = set_up(clone, PATH=path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")

    stamp.write_text(stamp.read_text() + "left-over==1.0\n")
    stale = set_up(clone, PATH=path)  # no Python is to be had, so it cannot go on, but it noticed
    assert stale.returncode == 1
    assert "python3.13 python3.12 python3.11 python3" in stale.stderr


# Who may know whom -----------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "wn").rglob("*.py"))}
GROUND = ("wn.norm", "wn.optim", "wn.data", "wn.records", "wn.config", "wn.provenance")
OWNERS = {
    "hydra": ("wn.train", "wn.launcher"),
    "omegaconf": ("wn.train", "wn.launcher"),
    "wandb": ("wn.tracking",),
    "pandas": ("wn.report",),
    "matplotlib": ("wn.report",),
}
STRANGERS = {
    "wn.report": ("torch", "torchvision"),
    "wn.config": ("torch",),
    "wn.models": ("wn.data", "wn.trainer", "wn.records"),
    "wn.metrics": ("wn.models", "wn.norm"),
    "wn.trainer": ("wn.tracking", "wn.train", "wn.launcher", "wn.report"),
}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports, inside its functions too, as absolute dotted names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("module", MODULES)
def test_module_knows_only_whom_it_may(module: str):
    for library, owners in OWNERS.items():
        if not within(module, owners):
            assert not any(within(name, (library,)) for name in imports(module)), f"{library} is for {owners}"
    for place, strangers in STRANGERS.items():
        if within(module, (place,)):
            assert not any(within(name, strangers) for name in imports(module)), (
                f"{place} knows no {strangers}"
            )


@pytest.mark.parametrize("module", [module for module in MODULES if within(module, GROUND)])
def test_ground_modules_know_only_the_configuration(module: str):
    own = tuple(ground for ground in GROUND if within(module, (ground,)))
    known = {name for name in imports(module) if name in MODULES and not within(name, own)}
    assert known <= {"wn", "wn.config", "wn.provenance"}


def test_importing_the_package_is_light():
    heavy = ("wandb", "hydra", "pandas", "matplotlib", "torch")
    program = f"import wn, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"
