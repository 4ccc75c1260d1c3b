"""The command line: one line for every mistake of the user's, and nothing trained."""

from __future__ import annotations

import re
import shlex
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import Call, Result, records

from wn import experiments, train
from wn.config import idle, parse
from wn.presets import PRESETS

MISTAKES = {
    # unknown keys: the nearest one
    "optim.lrr=1": "optim.lrr: unknown key; did you mean 'lr'?",
    "optm.lr=1": "optm(.lr)?: unknown key; did you mean 'optim'?",
    "model.depth=2": "model.depth: a key of model=convnet or resnet_vae or transformer alone",
    "+model.depth=2": "model.depth: a key of model=convnet or resnet_vae or transformer alone",
    "model=convnet": "model.widths: a key of model=mlp or mlp_vae alone",
    "model.wdths=[4]": "model.wdths: unknown key; did you mean 'widths'?",
    "+model.foo=1": "model.foo: unknown key; known: activation, .*, widths",
    "+optim.foo=1": "optim.foo: unknown key; known: .*lr, .*momentum",
    "sede=1": "sede: unknown key; did you mean 'seed'?",
    "+epochs=3": "epochs: unknown key; did you mean trainer.epochs?",
    "optim.lr.x=1": "optim.lr.x: unknown key",
    "+optim.lr=1": "optim.lr: there already; write optim.lr=... without a plus sign",
    "+norm=none": "norm: chosen already; write norm=... without a plus sign",
    "experiment=lr_robustness_digits": r"write \+experiment=lr_robustness_digits",
    "~optm": "'?optm'? does not exist",
    # presets: the nearest one, or all
    "norm=weight_nrm": "norm=weight_nrm: no such preset; did you mean 'weight_norm'?",
    "+experiment=qqqq": "experiment=qqqq: no such preset; known: .*lr_robustness_digits",
    "+experiment=lr_robustnes_digits": "no such preset; did you mean 'lr_robustness_digits'?",
    "data=imagenet": "data=imagenet: no such preset; known: cifar10, digits, fashion_mnist, mnist",
    "optim=3": "a group takes the name of a preset",
    "norm=null": "a group takes the name of a preset",
    "norm=[none]": r"norm=\[none\]: norm= takes the name of a preset",
    "model=[mlp]": r"model=\[mlp\]: model= takes the name of a preset",
    "'norm={weight: plain}'": "norm: takes a preset's name",
    "'trainer={epochs: 3}'": r"trainer=\{epochs: 3\}: trainer= takes the name of a preset",
    "~norm": "~norm: nothing can be left out; write norm=... with a value",
    "~optim.lr": "~optim.lr: nothing can be left out",
    "+norm@x=none": "x: unknown key",
    # Hydra's own settings
    "+hydra.foo=1": r"\+hydra.foo=1: no key of Hydra's is added or left out",
    "hydra.job.chdir=true": "hydra.job.chdir=true: records would lie where no report looks",
    "hydra/launcher=stackd": "hydra/launcher=stackd: no such preset; did you mean 'stacked'?",
    # values: what they should be
    "optim.lr=0": "optim.lr=0: Input should be greater than 0",
    "optim.lr=-1": "optim.lr=-1: Input should be greater than 0",
    "optim.lr=abc": "optim.lr=abc: Input should be a valid number",
    "optim.lr=": "optim.lr=: Input should be a valid number",
    "optim.lr=inf": "optim.lr=inf: Input should be a finite number",
    "optim.lr=nan": "optim.lr=nan: Input should be a finite number",
    "optim.lr=null": "optim.lr=None: Input should be a valid number",
    "optim.lr=true": "optim.lr=true: Input should be a valid number",
    "seed=true": "seed=true: Input should be a valid integer",
    "optim.lr=???": r"optim.lr=\?\?\?: Input should be a valid number",
    "'optim.lr=${optim.lrr}'": "Interpolation key 'optim.lrr' not found",
    "optim.lr=0 seed=-1": "optim.lr=0: .*; seed=-1: Input should be greater than or equal to 0",
    "seed=99999999999999999999": "seed=9+: Input should be less than",
    "trainer.epochs=0": "trainer.epochs=0: Input should be greater than 0",
    "trainer.precision=float16": "trainer.precision=float16: Input should be 'float32', 'tf32', .*'float64'",
    "model.name=cnn": "model.name=cnn: should be one of 'mlp', 'convnet'",
    "model.activation=gelu": "model.activation=gelu: Input should be 'relu', .*or 'tanh'",
    "model.weight_init=hee": "model.weight_init: hee is neither he, paper or glorot nor a standard deviation",
    "model.weight_init=0": "model.weight_init: 0 is neither he, .* nor a standard deviation above 0",
    "model.weight_init=-0.1": "model.weight_init: -0.1 is neither",
    "model.weight_init=inf": "model.weight_init: inf is neither",
    "model.weight_init=true": "model.weight_init: true is neither",
    "model.widths=[8,0]": "model.widths.1=0: Input should be greater than 0",
    "experiment_name=../up": "experiment_name=../up: String should match",
    "runs_dir=": "runs_dir=: String should have at least 1 character",
    "'runs_dir=\"~/runs\"'": "runs_dir: ~/runs: the shell has left the ~ as it is; write the whole path",
    # what cannot be trained here
    "trainer.batch_size=5000": "trainer.batch_size=5000: larger than the 1149 training images; give less",
    "trainer.device=cuda": "trainer.device=cuda: not available here; take trainer.device=auto, or cpu",
    "trainer.device=nowhere": "trainer.device=nowhere: not available here",
    "trainer.device=meta": "trainer.device=meta: not available here",
    "trainer.device=hpu": "trainer.device=hpu: not available here",
    "trainer.device=privateuseone": "trainer.device=privateuseone: not available here",
    "trainer.device=xla:3": "trainer.device=xla:3: not available here",
    "trainer.device=": "trainer.device=: not available here",
    "data.valid_fraction=0.9999": "data.valid_fraction=0.9999: .* valid_fraction=0 holds none out",
    "data=mnist data.root=missing": r"data.root=missing: no such folder; create it and .*data.download=true",
    "data=mnist data.root=empty data.download=false": "data.root=empty: no complete MNIST there; .*parquet",
    "data=mnist data.root=corrupt": "corrupt/.*: cannot be read .*; move that away",
    "data=mnist data.root=unreachable": r"MNIST could not be downloaded there .*no route.*; .*data.root=",
    "runs_dir=file": r"file/adhoc/\w+: cannot be written to .*; name another folder with runs_dir=",
    f"runs_dir={'a' * 5000}": r"a{290,}\.\.\. ?.*File name too long",
    f"experiment_name={'a' * 5000}": "File name too long",
    f"data=mnist data.root={'a' * 5000}": "File name too long",
    f"data={'a' * 5000}": "File name too long",
    f"+experiment={'a' * 5000}": "File name too long",
    f"optim.lr={'a' * 5000}": r"optim.lr=a{57}\.\.\.: Input should be a valid number",
    # paths that Hydra's grammar does not take as they are
    "runs_dir=a=b": r"""runs_dir=a=b: not well formed; write 'runs_dir="a=b"'""",
    "runs_dir=a#b": r"""runs_dir=a#b: not well formed; write 'runs_dir="a#b"'""",
    "'runs_dir=/x/a(1)'": r"""not well formed; write 'runs_dir="/x/a\(1\)"'""",
    "data=mnist data.root=ü": r"""data.root=ü: not well formed; write 'data.root="ü"'""",
    "runs_dir=a\udcff": r"runs_dir=a.*: not well formed; write",
    "runs_dir=[a": "runs_dir=.*: not well formed; write 'runs_dir=\"\\[a\"'",
    # overrides that are none
    "norm": "norm: not well formed; write KEY=VALUE",
    "=1": "",
    "seed==1": "seed==1: not well formed",
    "optim..lr=1": "optim..lr=1: not well formed",
    "'model.widths=[4'": r"model.widths=\[4: not well formed",
    "'model={widths: [4]'": r"model=\{widths: \[4\]: not well formed",
    "'seed=1\n2'": "seed",
}


@pytest.fixture
def obstacles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that cannot be used, a file where a folder should be, no GPU and no network."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unreachable").mkdir()
    raw = tmp_path / "corrupt/MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(b"\x1f\x8b\x08\x00 not really")

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    datasets = types.SimpleNamespace(MNIST=no_network)  # the true one takes seconds to import
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    zeros = torch.zeros

    def no_gpu(*shape: Any, **options: Any) -> torch.Tensor:
        if str(options.get("device")).startswith("cuda"):
            raise AssertionError("Torch not compiled with CUDA enabled")
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", no_gpu)


def assert_refused(result: Result, message: str, folder: Path) -> None:
    assert result.status == 2
    assert result.err.count("\n") == 1, result.err
    assert re.match(f"error: .*{message.replace('.lr', '[.]lr')}", result.err), result.err
    for noise in ("Traceback", "hydra.cc", "Error executing", "HYDRA_FULL_ERROR", "Warning", "LexerNoViable"):
        assert noise not in result.err
    assert result.out == ""
    assert not list(folder.rglob("record.json"))
    assert not (folder / "up").exists()


@pytest.mark.usefixtures("obstacles")
@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(call: Call, tmp_path: Path, words: str) -> None:
    assert_refused(call(words), MISTAKES[words], tmp_path)


SWEPT = [
    "sede=1",
    "+optim.foo=1",
    "experiment=lr_robustness_digits",
    "norm=[none]",
    "~optim.lr",
    "hydra/launcher=stackd",
    "hydra.job.chdir=true",
    "seed==1",
]
"""One of each kind; :func:`test_one_bad_value_of_many_refuses_the_sweep` has those of single values."""


@pytest.mark.usefixtures("obstacles")
@pytest.mark.parametrize("words", SWEPT)
def test_a_mistake_in_a_sweep_is_one_line_and_trains_nothing(call: Call, tmp_path: Path, words: str) -> None:
    assert_refused(call(f"-m seed=0,1 {words}"), MISTAKES[words], tmp_path)


@pytest.mark.usefixtures("obstacles")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.lr=0.1,0", "optim.lr=0: Input should be greater than 0"),
        ("optim.lr=0.1,abc", "optim.lr=abc: Input should be a valid number"),
        ("optim.lrr=0.1,0.2", "optim.lrr: unknown key; did you mean 'lr'?"),
        ("norm=none,weight_nrm", "norm=weight_nrm: no such preset; did you mean 'weight_norm'?"),
        ("trainer.batch_size=500,5000", "trainer.batch_size=5000: larger than"),
        ("trainer.device=cpu,cuda", "trainer.device=cuda: not available here"),
        ("data=digits,mnist ++data.root=missing", "data.root=missing: no such folder"),
        ("data=digits,mnist ++data.root=corrupt", "corrupt/.*: cannot be read"),
        ("seed=0,1 runs_dir=file", "cannot be written to"),
        ("runs_dir=runs,file", "cannot be written to"),
        ("seed=0,1 runs_dir=", "runs_dir=: String should have at least 1 character"),
        ("seed=0,1 experiment_name=../up", "experiment_name=../up: String should match"),
        ("optim.lr=interval(0,1)", "list them, as in optim.lr=0.01,0.1"),
        ("+experiment=lr_robustness_digits,nope", "experiment=nope: no such preset"),
        ("'optim.lr=[0.1,0.2'", r"optim.lr=\[0.1,0.2: not well formed"),
    ],
)
def test_one_bad_value_of_many_refuses_the_sweep(
    call: Call, tmp_path: Path, words: str, message: str
) -> None:
    assert_refused(call(f"-m {words}"), message, tmp_path)


def test_the_basic_launcher_ends_at_a_mistake(call: Call, tmp_path: Path) -> None:
    """Hydra gives it one job after the other, so those before the mistake are trained."""
    result = call("-m hydra/launcher=basic optim.lr=0,0.1")
    assert (result.status, result.err) == (2, "error: optim.lr=0: Input should be greater than 0\n")
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("members", ["0", "abc"])
def test_a_number_of_members_that_is_none(call: Call, tmp_path: Path, members: str) -> None:
    result = call(f"-m seed=0,1 hydra.launcher.members={members}")
    assert_refused(result, f"hydra.launcher.members={members}: should be a positive whole number", tmp_path)


def test_several_values_without_the_switch(call: Call, tmp_path: Path) -> None:
    assert_refused(call("norm=none,batch_norm"), "norm=none,batch_norm: several values; .*-m", tmp_path)
    assert_refused(call("seed=range(0,3)"), r"seed=range\(0,3\): several values; .*-m", tmp_path)


def test_a_mistake_in_an_experiment_s_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "FOLDER", tmp_path / "experiments")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/half.yaml").write_text("title: [\n")
    assert_refused(call("+experiment=half"), "experiments/half.yaml: ", tmp_path)
    assert call("trainer.epochs=1").status == 0  # it stops nobody else


def test_who_asks_for_tracebacks_gets_them(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TRACEBACKS", True)
    with pytest.raises(train.UserError, match="greater than 0"):
        call("optim.lr=0")


def test_an_error_of_the_program_s_own_is_not_hidden(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "register", lambda: [][0])
    with pytest.raises(IndexError):
        call("seed=0")


@pytest.mark.parametrize("path", ["a=b", "a#b", "a(1)", "ü", "a{b", "~a", "a b", "50%", "a;b&c"])
def test_the_spelling_that_is_advised_is_taken(call: Call, tmp_path: Path, path: str) -> None:
    first = call(f"norm=none {shlex.quote(f'runs_dir={path}')}")
    if first.status:
        advised = re.search("write (.*)", first.err)
        assert advised, first.err
        assert call(f"norm=none {advised[1]}").status == 0
    assert (tmp_path / path).is_dir()


def test_hyphens_are_a_spelling(call: Call, tmp_path: Path) -> None:
    """As ``wandb sweep`` writes its arguments."""
    assert call("--norm=none --optim.lr=0.01 --seed=3").status == 0
    (record,) = records(tmp_path / "runs/adhoc").values()
    assert (record["norm"], record["config"]["optim"]["lr"], record["config"]["seed"]) == ("none", 0.01, 3)
    assert_refused(call("--optim.lr=0"), "optim.lr=0: Input should be greater than 0", tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("norm=none optim.lr_gain=0.1", "optim.lr_gain has no effect: norm=none trains no gain"),
        (
            "norm=scaled_init optim.lr_gain=0.1",
            "optim.lr_gain has no effect: norm=scaled_init trains no gain",
        ),
        ("optim=sgd optim.beta2=0.9", "optim.beta2 has no effect: optim=sgd has none"),
        (
            "optim.late_momentum=0.5",
            "optim.late_momentum has no effect: optim.schedule=constant has no late part",
        ),
        ("norm=none optim.lr_gain_cap=0.1", "optim.lr_gain_cap has no effect: norm=none trains no gain"),
        ("optim=sgd optim.eps=0.1", "optim.eps has no effect: optim=sgd has none"),
        (
            "optim=sgd optim.decay_from=0.2",
            "optim.decay_from has no effect: optim.schedule=constant has no late part",
        ),
        ("norm=weight_norm optim.lr_gain=0.1", None),
        ("norm=batch_norm optim.lr_gain=0.1", None),
        ("optim=adam optim.beta2=0.9", None),
        ("optim=adam_paper", None),
        ("norm=none", None),
    ],
)
def test_a_setting_without_effect_is_told(call: Call, words: str, line: str | None) -> None:
    result = call(words)
    assert result.status == 0
    assert [one for one in result.out.splitlines() if "has no effect" in one] == [line] * (line is not None)


@pytest.mark.parametrize("norm", ["batch_norm", "batch_renorm", "weight_norm", "layer_norm"])
def test_batches_of_one_image_are_told_where_nothing_is_left_of_them(norm: str) -> None:
    lines = idle(parse({"norm": PRESETS[norm], "trainer": {"batch_size": 1}}))
    assert bool(lines) == norm.startswith("batch")
