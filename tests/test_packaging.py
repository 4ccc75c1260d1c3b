"""Dependencies agree, locks are complete, the wheel holds what it should, and scripts run."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from import_cases import MODULES, ROOT, imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = ("requirements.lock", "scripts/uv.lock")


def bounds(requirements: list[str]) -> dict[str, str]:
    """Canonical name -> specifier, in one spelling."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(item.name): str(item.specifier) for item in parsed}


def lines_of(lock: str) -> list[str]:
    """A lock's requirements, one a line."""
    return (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


PINS = [Requirement(line.split(" --hash=")[0]) for line in lines_of("requirements.lock")]


# Dependencies ----------------------------------------------------------------------------------------


def test_conda_environment_agrees_with_pyproject():
    *conda, from_pip = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = bounds(conda)
    pip = bounds(from_pip["pip"])
    assert conda.pop("python") == bounds([f"python{PROJECT['requires-python']}"])["python"]
    assert conda.pop("pip") == ""
    assert set(pip) == {"torch", "torchvision"}
    assert conda | pip == bounds(PROJECT["dependencies"])


def test_lock_pins_every_dependency_once_and_within_its_bounds():
    """On every supported Python and platform."""
    dependencies = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for python, platform in itertools.product(("3.11", "3.12", "3.13"), ("linux", "darwin")):
        assert python in Requirement(f"python{PROJECT['requires-python']}").specifier
        environment = {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": platform,
        }
        found: dict[str, list[str]] = {}
        for pin in PINS:
            if pin.marker is None or pin.marker.evaluate(environment):
                (exact,) = pin.specifier
                assert exact.operator == "==", pin
                found.setdefault(canonicalize_name(pin.name), []).append(exact.version)
        for wanted in map(Requirement, dependencies):
            versions = found.get(canonicalize_name(wanted.name), [])
            assert len(versions) == 1, (wanted.name, python, platform)
            assert versions[0] in wanted.specifier, (wanted.name, python, platform)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_hashes_and_names_no_host(lock: str):
    line = re.compile(r"[\w.-]+==[\w.+]+( ; [^\\#]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [text for text in lines_of(lock) if not line.fullmatch(text)] == []
    for word in ("http://", "https://", "--index-url", "--find-links", "file:"):
        assert word not in (ROOT / lock).read_text(encoding="utf-8")


def test_every_import_of_the_package_is_a_declared_dependency():
    distributions = importlib.metadata.packages_distributions()
    outside = {name.split(".")[0] for module in MODULES for name in imports(module)}
    outside -= {*sys.stdlib_module_names, "wn", "omegaconf"}  # omegaconf is Hydra's own container
    declared = bounds([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["games"]])
    assert outside >= {"pydantic", "torch", "gymnasium"}
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
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, dict), path


def test_checks_before_a_commit_need_no_network():
    """They are commands of the project's own environment, on files that exist."""
    tree = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    dev = bounds(PROJECT["optional-dependencies"]["dev"])
    for hook in (hook for repo in tree["repos"] for hook in repo["hooks"]):
        assert (tree["repos"][0]["repo"], len(tree["repos"]), hook["language"]) == ("local", 1, "system")
        python, dash_m, tool, *words = hook["entry"].split()
        assert ([python, dash_m], tool in dev) == ([".venv/bin/python", "-m"], True)
        files = [word.partition("::")[0] for word in words if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files), hook["id"]


def test_license_and_citation():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n\nCopyright (c) 2026 ")
    assert PROJECT["license"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Salimans", "Kingma"]
    assert paper["identifiers"][0]["value"] == "arXiv:1602.07868"


# Installed -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``pip install .`` would put among the packages."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("wn", "hydra_plugins", "configs", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    program = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}-")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    return folder / "site"


def run_installed(site: Path, folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the installed packages, in a folder that is no checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HYDRA_FULL_ERROR": "0"}
    command = [sys.executable, "-P", "-c", program, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_module_and_every_file_of_data(site: Path):
    modules = {p.relative_to(ROOT) for top in ("wn", "hydra_plugins") for p in (ROOT / top).rglob("*.py")}
    data = {
        Path("wn/share") / p.relative_to(ROOT)
        for d in ("configs", "experiments")
        for p in (ROOT / d).rglob("*.yaml")
    }
    found = {p.relative_to(site) for p in site.rglob("*") if p.is_file() and "dist-info" not in str(p)}
    assert found == modules | data | {Path("wn/report/web.html")}


def test_the_commands_are_the_modules_main_functions():
    assert PROJECT["scripts"].keys() == {
        *("wn-train", "wn-report", "wn-evaluate", "wn-sync"),
        *("wn-check", "wn-compare"),
    }
    for command, place in PROJECT["scripts"].items():
        module, _, function = place.partition(":")
        assert command == module.removesuffix(".__main__").replace(".", "-")
        assert callable(getattr(importlib.import_module(module), function))


OWN = """
import sys
from wn import experiments, train
from wn.config.compose import compose

assert compose({"norm": "mine"}).norm.gain == "fixed"
assert {"mine", "lr_robustness_digits"} <= {*experiments.names()}
(run,) = experiments.load("mine").runs()
assert run.config.norm.gain == "fixed"
assert experiments.load("cifar10_table").rows
sys.exit(train.main())
"""


def test_an_installed_project_finds_its_files_and_the_user_s_own(site: Path, tmp_path: Path):
    (tmp_path / "configs/norm").mkdir(parents=True)
    (tmp_path / "configs/norm/mine.yaml").write_text("direction: row\ngain: fixed\n")
    (tmp_path / "experiments").mkdir()
    mine = {"title": "t", "claim": "c", "fixed": {"model": "mlp"}}
    mine["grid"] = {"norm": ["mine"], "optim.lr": [0.1], "seed": [0]}
    (tmp_path / "experiments/mine.yaml").write_text(yaml.safe_dump(mine))
    result = run_installed(site, tmp_path, OWN, "--cfg", "job", "norm=mine", "optim.lr=0.25")
    assert (result.returncode, result.stderr) == (0, "")
    composed = yaml.safe_load(result.stdout)
    assert (composed["norm"]["gain"], composed["optim"]["lr"]) == ("fixed", 0.25)


def test_another_hydra_application_imports_no_torch(site: Path, tmp_path: Path):
    program = """
import sys
import hydra
from hydra.core.plugins import Plugins

@hydra.main(version_base=None, config_path=None)
def main(config):
    heavy = {"torch", "wandb", "pandas", "pydantic", "wn"} & sys.modules.keys()
    print(heavy, "hydra_plugins.wn_launcher" in sys.modules)

main()
"""
    result = run_installed(site, tmp_path, program)
    assert (result.stdout, result.stderr) == ("set() True\n", "")


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

    stamp.write_text(stamp.read_text(encoding="utf-8") + "left-over==1.0\n")
    stale = set_up(clone, PATH=path)  # no Python is to be had, so it cannot go on, but it noticed
    assert stale.returncode == 1
    assert "python3.13 python3.12 python3.11 python3" in stale.stderr
