"""What a command line stands for: the runs of sweeps and experiments, and the report at their end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from train_cases import Call, declare, records

from wn import experiments, launcher, train
from wn.config import Config
from wn.run import RunFailed
from wn.stops import Preempted

Cell = tuple[str, float, int]

ROWS = [
    {"name": "WN", "norm": "weight_norm", "lrs": [0.1], "chosen": 0.02},
    {"name": "BN", "norm": "batch_norm", "lrs": [0.1]},
    {"name": "tanh", "norm": "none", "lrs": [0.01, 0.1], "set": {"model.activation": "tanh"}},
]
TABLE = [("weight_norm", 0.1), ("weight_norm", 0.02), ("batch_norm", 0.1), ("none", 0.01), ("none", 0.1)]


@pytest.fixture(autouse=True)
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(tmp_path, monkeypatch, "table", rows=ROWS, seeds=[0, 1, 2])
    declare(tmp_path, monkeypatch, "grid", grid={"norm": ["none", "batch_norm"], "seed": [0, 1]})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The runs that are given to the trainer, in their order; none is trained."""
    given: list[Config] = []

    def train_sweep(configs: Sequence[Config], **_: Any) -> list[None]:
        given.extend(configs)
        return [None] * len(configs)

    monkeypatch.setattr(launcher, "train_sweep", train_sweep)
    monkeypatch.setattr(launcher, "final_loss", lambda record: 0.0)
    return given


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, call: Call) -> list[str]:
    """The folders that a report was made of."""
    folders: list[str] = []
    monkeypatch.setattr(train, "make_report", lambda folder: folders.append(str(folder)) or True)
    return folders


def cells(configs: list[Config]) -> list[Cell]:
    return [(config.norm.label, config.optim.lr, config.seed) for config in configs]


# Experiments


@pytest.mark.parametrize("switch", ["", "-m "])
def test_every_row_is_trained_with_the_first_seed_before_the_next(
    call: Call, trained: list[Config], switch: str
) -> None:
    assert call(f"{switch}+experiment=table").status == 0
    assert cells(trained) == [(norm, lr, seed) for seed in (0, 1, 2) for norm, lr in TABLE]
    assert {c.run_id for c in trained} == {c.run_id for c in experiments.load("table").configs()}
    assert [c.model.activation for c in trained[:5]] == ["relu"] * 3 + ["tanh"] * 2  # type: ignore[union-attr]
    assert {c.experiment_name for c in trained} == {"table"}


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("seed=1", [(norm, lr, 1) for norm, lr in TABLE]),
        ("norm=none optim.lr=1e-2", [("none", 0.01, seed) for seed in (0, 1, 2)]),
        ("seed=1 model.activation=tanh", [("none", 0.01, 1), ("none", 0.1, 1)]),  # which one row sets
        ("-m seed=2,0 norm=batch_norm", [("batch_norm", 0.1, 2), ("batch_norm", 0.1, 0)]),
        ("-m seed=0 'norm=choice(weight_norm,batch_norm)' optim.lr=0.1", [(*TABLE[0], 0), (*TABLE[2], 0)]),
    ],
)
def test_an_axis_restricts_the_experiment(
    call: Call, trained: list[Config], words: str, left: list[Cell]
) -> None:
    assert call(f"+experiment=table {words}").status == 0
    assert cells(trained) == left


@pytest.mark.parametrize("words", ["optim.lr=0.5", "norm=weight_norm optim.lr=0.01", "seed=7", "-m seed=0,7"])
def test_a_run_that_the_experiment_has_not_is_refused(
    call: Call, trained: list[Config], tmp_path: Path, words: str
) -> None:
    result = call(f"+experiment=table {words}")
    assert (result.status, result.out, trained) == (2, "", [])
    asked = words.replace("-m seed=0,7", "seed=7")
    assert result.err == f"error: {asked}: the experiment has no such run; its file names those that it has\n"
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(
    "words",
    ["trainer.epochs=3", "norm.eps=1e-5", "data=mnist", "optim=adam", "+model.noise=0.1"],
)
def test_another_number_needs_another_name(call: Call, trained: list[Config], words: str) -> None:
    result = call(f"+experiment=grid {words}")
    assert (result.status, trained) == (2, [])
    assert result.err.count("\n") == 1


def test_the_line_that_refuses_says_how_to_do_it(call: Call, trained: list[Config]) -> None:
    assert call("+experiment=grid optim.momentum=0.5 seed=0").err == (
        "error: optim.momentum=0.5: experiment grid fixes its numbers; for one of your own add "
        "experiment_name=NAME, or copy experiments/grid.yaml and change the copy\n"
    )
    assert call("+experiment=grid optim.momentum=0.5 seed=0 experiment_name=mine").status == 0
    assert cells(trained) == [("none", 0.1, 0), ("batch_norm", 0.1, 0)]
    assert {(c.optim.momentum, c.experiment_name) for c in trained} == {(0.5, "mine")}


def test_what_is_outside_the_identity_is_free(call: Call, trained: list[Config]) -> None:
    words = "trainer=default tracking=wandb data.root=here trainer.compile=true runs_dir=there"
    assert call(f"+experiment=grid {words} optim.lr=0.1").status == 0  # and a number that changes nothing
    for config, own in zip(trained, experiments.load("grid").configs(), strict=True):
        assert config.run_id == own.run_id
        assert (config.data.root, config.trainer.compile) == ("here", True)
        assert (config.runs_dir, config.tracking.mode) == ("there", "disabled")


def test_numbers_of_a_renamed_experiment_can_be_swept(call: Call, trained: list[Config]) -> None:
    assert call("-m +experiment=grid optim.momentum=0.5,0.8 seed=0 experiment_name=mine").status == 0
    assert [c.optim.momentum for c in trained] == [0.5, 0.5, 0.8, 0.8]


def test_what_is_trained_has_the_experiment_s_identities(call: Call, tmp_path: Path) -> None:
    result = call("+experiment=grid seed=0")
    assert (result.status, result.err) == (0, "")
    ids = [config.run_id for config in experiments.load("grid").configs()]
    assert records(tmp_path / "runs/grid").keys() == {ids[0], ids[2]}
    assert call("+experiment=grid seed=0").out == "2 runs: 2 done before, 0 to train\n"
    assert call("-m experiment_name=mine norm=none seed=0,1").status == 0
    assert len(records(tmp_path / "runs/mine").keys() & set(ids)) == 2


# Sweeps


@pytest.mark.parametrize(
    "names", ["experiment_name=a,b,c", "+experiment=grid experiment_name=a,b,c norm=none"]
)
def test_a_run_that_several_experiments_have_is_trained_once_and_recorded_in_each(
    call: Call, tmp_path: Path, steps: list[int], names: str
) -> None:
    result = call(f"-m {names} seed=0")
    assert (result.status, result.err) == (0, "")
    assert sum(steps) == 2 * 2  # two epochs of two batches, of one run
    (first, *others) = (records(tmp_path / "runs" / name) for name in "abc")
    (run_id,) = first
    for name, other in zip("bc", others, strict=True):
        assert other == {run_id: {**first[run_id], "experiment": name}}


def test_a_folder_that_cannot_be_used_is_refused_before_any_other_is_trained(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for folders in ("runs,file", "file,runs"):
        result = call(f"-m seed=0 runs_dir={folders}")
        assert (result.status, result.out) == (2, "")
        assert "cannot be written to" in result.err
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("-m seed=range(0,3) norm=none", [("none", 0.1, seed) for seed in range(3)]),
        ("-m 'optim.lr=choice(0.1,1e-3)'", [("weight_norm", 0.1, 0), ("weight_norm", 0.001, 0)]),
        ("norm=none -m seed=0,1", [("none", 0.1, 0), ("none", 0.1, 1)]),
        ("-m 'norm=glob(batch_n*)' seed=1", [("batch_norm", 0.1, 1)]),
        ("-m norm=none,batch_norm seed=0,1", [(n, 0.1, s) for n in ("none", "batch_norm") for s in (0, 1)]),
    ],
)
def test_values_are_tried_one_by_one(
    call: Call, trained: list[Config], words: str, given: list[Cell]
) -> None:
    assert call(words).status == 0
    assert cells(trained) == given


def test_values_that_are_no_plain_numbers(call: Call, trained: list[Config]) -> None:
    assert call("-m 'model.widths=[4],[8,8]' optim.lr=0.1,0.2 'optim.lr_gain=${optim.lr}'").status == 0
    assert [c.model.widths for c in trained] == [(4,), (4,), (8, 8), (8, 8)]  # type: ignore[union-attr]
    assert [c.optim.lr_gain for c in trained] == [0.1, 0.2, 0.1, 0.2]
    assert call("-m \"experiment_name='a','b'\" optim=adam,sgd ++optim.beta2=0.9").status == 0
    assert [c.experiment_name for c in trained[4:]] == ["a", "a", "b", "b"]
    assert {c.optim.beta2 for c in trained[4:]} == {0.9}


def test_two_hundred_jobs_are_composed_at_once(
    call: Call, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a norm: Hydra takes a tenth of a second for each."""
    composed, compose_one = [], ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_sweep_config",
        lambda *words: (composed.append(words), compose_one(*words))[1],
    )
    assert call("-m norm=none,batch_norm seed=range(0,100)").status == 0
    assert len({config.run_id for config in trained}) == 200
    assert len(composed) == 2


@pytest.mark.parametrize("words", ["seed=range(10,0)", "'norm=glob(nothing*)'"])
def test_a_sweep_of_no_runs_is_a_mistake(call: Call, trained: list[Config], words: str) -> None:
    result = call(f"-m {words}")
    assert (result.status, result.err) == (2, "error: no runs: a range(...) or glob(...) has no value\n")


def test_a_sweep_without_end_is_a_mistake(call: Call, trained: list[Config]) -> None:
    result = call("-m seed=range(0,1000000000) optim.lr=0.1,0.2")
    assert (result.status, result.err) == (
        2,
        "error: more than 100,000 runs in one sweep; give fewer values\n",
    )


def test_hydra_finds_the_launcher_without_torch() -> None:
    program = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher\n"
        "names = [plugin.__name__ for plugin in Plugins.instance().discover(Launcher)]\n"
        "print('StackedLauncher' in names, {'torch', 'wn'} & set(sys.modules))"
    )
    folder = Path(launcher.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True set()\n"


# The report at the end


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        ("norm=none", []),
        ("-m norm=none", []),
        ("-m seed=0,1", ["runs/adhoc"]),
        ("-m seed=0,1 hydra/launcher=basic", ["runs/adhoc"]),
        ("+experiment=grid", ["runs/grid"]),
        ("-m +experiment=grid,table", ["runs/grid", "runs/table"]),
        ("-m experiment_name=a,b seed=0,1 runs_dir=r", ["r/a", "r/b"]),
    ],
)
def test_a_sweep_ends_with_its_report(
    call: Call, trained: list[Config], reported: list[str], words: str, folders: list[str]
) -> None:
    assert call(words).status == 0
    assert reported == folders


def test_a_report_that_fails_costs_a_line(
    call: Call, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "make_report", lambda folder: False)
    result = call("-m seed=0,1")
    assert (result.status, result.err) == (0, "no report; to see why: python -m wn.report runs/adhoc\n")


def test_the_report_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, returncode=len(asked) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert train.make_report(Path("runs/a"))
    assert not train.make_report(Path("runs/a"))
    assert asked[0] == [sys.executable, "-m", "wn.report", "runs/a"]


def test_what_is_reported_goes_to_wandb(
    call: Call, trained: list[Config], reported: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(train, "send_report", lambda folder, to: sent.append((str(folder), to.mode)))
    assert call("-m seed=0,1 tracking.mode=offline").status == 0
    assert sent == [("runs/adhoc", "offline")]


@pytest.mark.parametrize(
    ("end", "status", "folders"),
    [
        (Preempted("trainer.max_minutes=1", "there", 75), 75, []),
        (KeyboardInterrupt(), 130, []),
        (Preempted("SIGTERM", "there", 143), 143, []),
        (RunFailed("run failed"), 1, ["runs/adhoc"]),
    ],
)
def test_no_report_of_a_sweep_that_goes_on(
    call: Call,
    trained: list[Config],
    reported: list[str],
    monkeypatch: pytest.MonkeyPatch,
    end: BaseException,
    status: int,
    folders: list[str],
) -> None:
    def ended(*_: Any, **__: Any) -> Any:
        raise end

    part = "final_loss" if status == 1 else "train_sweep"
    monkeypatch.setattr(launcher, part, ended)
    assert call("-m seed=0,1").status == status
    assert reported == folders
