"""What a user's own file registers works as a preset does, and runs only where the user names it."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sweep_cases as cases
import torch
from plugin_cases import NORM, own
from train_cases import REPOSITORY, Call, declare, records

from wn import evaluate, experiments, launcher, models, plugins, sweep, trained
from wn.config import Config, UserError, idle, parse
from wn.config.compose import compose
from wn.config.files import hashes
from wn.records import read_experiment
from wn.report.__main__ import main as report
from wn.sweep import train_sweep

EXAMPLE = REPOSITORY / "docs/examples/own.py"


def tiny(folder: Path, file: str, **changes: Any) -> Config:
    """A run of sweep_cases' size with the norm ``mine``."""
    config = cases.tiny(folder, **{"plugins": [file], **changes})
    return config.model_copy(update={"norm": parse({"norm": {"plugin": "mine"}, "plugins": [file]}).norm})


# What a run is


def test_the_files_content_is_part_of_the_identity_and_its_path_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = own(tmp_path), own(tmp_path / "elsewhere", name="renamed.py")
    edited = own(tmp_path, NORM + "\n", "edited.py")
    first, same, other = (compose({"norm": "mine", "plugins": [f]}).run_id for f in (here, there, edited))
    assert first == same != other
    assert compose({"norm": "none", "plugins": [here]}).run_id == compose({"norm": "none"}).run_id


def test_a_record_is_read_without_the_file(tmp_path: Path) -> None:
    file = own(tmp_path)
    config = compose({"norm": "mine", "model": "m", "model.width": 3, "data": "d", "plugins": file})
    Path(file).unlink()
    again = parse(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again.run_id == config.run_id
    assert again.plugins == {"own.py": hashlib.sha256(NORM.encode()).hexdigest()}
    assert (again.norm.label, again.own) == ("mine", {"norm": "mine", "model": "m", "data": "d"})


def test_a_file_may_be_named_twice_and_two_of_one_name_may_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, other = own(tmp_path), own(tmp_path / "other", NORM + "\n")
    roundabout = f"{tmp_path}/other/../own.py"
    assert hashes([here, roundabout]) == hashes([here])
    with pytest.raises(UserError, match="another file of this name"):
        hashes([here, other])


def test_a_norm_with_gains_of_its_own_has_learning_rates_of_them(tmp_path: Path) -> None:
    settings = {"norm": "mine", "plugins": own(tmp_path), "optim.lr_gain_cap": 0.1}
    assert not idle(compose(settings))
    assert idle(compose({"norm": "none", "optim.lr_gain_cap": 0.1}))


def test_only_named_files_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "was run"
    file = own(tmp_path, f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n" + NORM)
    declare(
        tmp_path, monkeypatch, "mine", fixed={"plugins": ["own.py"]}, grid={"norm": ["mine"], "seed": [0]}
    )
    config = compose({"norm": "mine", "plugins": file})
    parse(config.model_dump(mode="json"))
    (run,) = experiments.load("mine").runs()
    assert run.config.plugins == config.plugins
    with pytest.raises(UserError, match=r"^norm=mine: no file registers it that plugins="):
        train_sweep([run.config])
    assert launcher.named_plugins(["norm=mine", "+experiment=other", "experiment_name=mine"]) == []
    assert not marker.exists()
    assert launcher.named_plugins(["+experiment=other,mine"]) == [file]
    plugins.load([file])
    assert marker.exists()


# Training


def test_the_example_trains_and_its_record_names_no_path(call: Call, tmp_path: Path) -> None:
    words = f"plugins=[{EXAMPLE}] norm=power_norm data=spirals trainer.batch_size=100"
    assert call(f"{words} model.widths=[8]").status == 0
    (record,) = records(tmp_path / "runs/adhoc").values()
    assert record["status"] == "finished"
    assert record["norm"] == "power_norm"
    assert record["config"]["plugins"] == {"own.py": hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()}
    assert str(REPOSITORY) not in json.dumps(record)
    assert "1 done before, 0 to train" in call(f"{words} model.widths=[8]").out


def test_an_experiment_names_its_plugins_in_its_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path)
    grid = {"norm": ["none", "mine"], "optim.lr": [0.1], "seed": [0]}
    declare(tmp_path, monkeypatch, "exp", fixed={"plugins": ["own.py"]}, grid=grid)
    result = call("+experiment=exp model.widths=[4] trainer.epochs=2 trainer.batch_size=500")
    assert (result.status, result.err) == (0, "")
    assert {record["norm"] for record in records(tmp_path / "runs/exp").values()} == {"none", "mine"}
    assert {run.config.run_id for run in experiments.load("exp").runs()} == set(
        records(tmp_path / "runs/exp")
    )


def test_a_sweep_over_the_examples_model_is_reported_without_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(EXAMPLE, tmp_path / "own.py")
    plugins.load([str(file)])
    common = {"model": "bottleneck", "plugins": str(file), "runs_dir": str(tmp_path / "runs")}
    common |= {"trainer.epochs": 1, "trainer.batch_size": 500, "tracking.mode": "disabled"}
    cells = [{"norm": n, "model.width": w} for n in ("none", "power_norm") for w in (4, 8)]
    train_sweep([compose({**common, **cell}) for cell in cells])
    (tmp_path / "own.py").unlink()
    plugins.load([])
    capsys.readouterr()
    assert report([str(tmp_path / "runs/adhoc")]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:6]]
    assert lines == [["model.width", "norm"], *([w, n] for w in "48" for n in ("none", "power_norm"))]


def test_stacked_alone_and_in_a_worker_it_is_the_same(tmp_path: Path, children: ForkServerContext) -> None:
    file = own(tmp_path)
    plugins.load([file])
    stacked, alone, there = ([tiny(tmp_path / n, file, seed=i) for i in (0, 1)] for n in ("s", "a", "w"))
    train_sweep(stacked, members=2, workers=1)
    train_sweep(alone, members=1, workers=1)
    work = functools.partial(sweep._train, plugins.loaded(), there)
    worker = children.Process(target=work)
    worker.start()
    worker.join()
    outcomes = [cases.outcome(tmp_path / name) for name in ("s", "a", "w")]
    assert worker.exitcode == 0
    for run_id, found in outcomes[0].items():
        for other in outcomes[1:]:
            assert found["record"]["status"] == other[run_id]["record"]["status"] == "finished"
            cases.assert_near(found["metrics"], other[run_id]["metrics"])


def test_a_worker_refuses_a_file_that_was_edited_since(tmp_path: Path) -> None:
    plugins.load([file := own(tmp_path)])
    loaded = plugins.loaded()
    own(tmp_path, NORM + "# edited\n")
    plugins.load_again(loaded)  # where it is loaded already, nothing is read
    plugins.load([])
    with pytest.raises(UserError, match=r"^own\.py: was edited while it is used"):
        plugins.load_again(loaded)
    assert Path(file).exists()


def test_a_subclass_that_changes_nothing_is_weight_normalisation(tmp_path: Path) -> None:
    file = own(tmp_path)
    plugins.load([file])
    runs = [tiny(tmp_path, file), cases.tiny(tmp_path, "weight_norm")]
    train_sweep(runs)
    mine, theirs = (record.metrics for record in sorted(read_experiment(tmp_path, "adhoc"), key=norm_of))
    assert runs[0].run_id != runs[1].run_id
    assert mine == theirs


def norm_of(record: Any) -> str:
    return str(record.content["norm"])


def test_a_sweep_that_was_cut_short_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    file = own(tmp_path)
    plugins.load([file])
    whole, cut = ([tiny(tmp_path / name, file, seed=seed) for seed in (0, 1)] for name in ("whole", "cut"))
    train_sweep(whole)
    assert not cases.train_until(12, cut)
    train_sweep(cut)
    assert cases.outcome(tmp_path / "cut") == cases.outcome(tmp_path / "whole")


def test_a_kept_model_loads_with_its_file_alone(tmp_path: Path) -> None:
    plugins.load([file := own(tmp_path)])
    config = tiny(tmp_path / "runs", file, trainer={"save": True})
    (record,) = train_sweep([config])
    plugins.load([])
    with pytest.raises(
        UserError, match=r"trained with the code of own\.py; (name it, as in plugins=|it has changed)"
    ):
        trained.load(record.folder)
    loaded = trained.load(record.folder, plugins=[file])
    assert "Mine" in {type(layer).__name__ for layer in loaded.modules()}
    logits = loaded(np.zeros((2, 1, 8, 8), np.uint8))
    assert logits.shape == (2, 10)


def test_a_model_is_evaluated_on_data_of_ones_own_and_of_the_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on a plugin's data, and on the project's; evaluated on either."""
    plugins.load([file := str(EXAMPLE)])
    short: dict[str, Any] = {"tracking.mode": "disabled", "trainer.save": True, "trainer.epochs": 1}
    short["runs_dir"] = str(tmp_path)
    runs = [compose({"data": "spirals", "plugins": [file], **short}), compose({"model": "mlp", **short})]
    spirals, digits = train_sweep(runs)
    plugins.load([])
    named = f"plugins=[{file}]"
    assert evaluate.main([str(spirals.folder), named]) == 0
    assert repr(spirals.content["final"]["test_error"]) in capsys.readouterr().out
    assert evaluate.main([str(digits.folder)]) == 0
    for run, data, shape in ((spirals, "digits", "2"), (digits, "spirals", "8x8")):
        assert evaluate.main([str(run.folder), named, f"data={data}"]) == 2  # of another shape, in a line
        assert shape in capsys.readouterr().err
    (tmp_path / "more.py").write_text(
        "import torch\nfrom wn import plugins\n\n\n@plugins.data('more')\ndef read():\n"
        "    x, y = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3\n"
        "    return (x[:30], y[:30]), (x[30:], y[30:])\n"
    )
    words = [f"plugins=[{file},{tmp_path / 'more.py'}]", "data.valid_fraction=0.5", "data=more"]
    assert evaluate.main([str(spirals.folder), *words]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["valid_loss", "valid_error", "test_loss", "test_error"]
    assert "record" not in "".join(lines)  # whose numbers are of the run's own data


def test_what_vmap_cannot_do_trains_one_by_one(tmp_path: Path, steps: list[int]) -> None:
    branch = "    def forward(self, x):\n        return super().forward(x if x.sum() > 0 else x)\n"
    file = own(tmp_path, NORM.replace("    pass\n", branch))
    plugins.load([file])
    train_sweep([tiny(tmp_path, file, seed=seed) for seed in (0, 1)])
    assert {record.status for record in read_experiment(tmp_path, "adhoc")} == {"finished"}
    assert max(steps[-4:]) == 1


def test_a_norm_may_wrap_the_layer_that_it_takes(tmp_path: Path) -> None:
    wrap = "from torch import nn\nfrom wn import plugins\n"
    wrap += "plugins.norm('mine')(lambda layer: nn.Sequential(layer, nn.Identity()))\n"
    file = own(tmp_path, wrap)
    plugins.load([file])
    wrapped = tiny(tmp_path / "mine", file)
    nets = [models.build(c.model, c.norm, (1, 8, 8), 10, 0) for c in (wrapped, cases.tiny(tmp_path, "none"))]
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(*(net(x) for net in nets))


def test_choices_that_are_set_are_given_to_the_norm_and_output_layers_may_stay_plain(tmp_path: Path) -> None:
    file = own(tmp_path)
    plugins.load([file])
    config = compose(
        {"norm": "mine", "norm.statistics": "batch", "norm.output_layers": False, "plugins": file}
    )
    assert config.norm.label == "mine+batch+False"
    network = models.build(config.model, config.norm, (1, 2, 2), 3, 0)
    kinds = [type(layer).__name__ for layer in network.children() if hasattr(layer, "raw_weight")]
    assert kinds == ["Mine", "Mine", "NormalizedLayer"]
    assert [layer.statistics for layer in network.children() if hasattr(layer, "raw_weight")][:1] == ["batch"]


def test_integers_are_no_part_of_the_average(tmp_path: Path) -> None:
    text = NORM.replace(
        "    pass\n",
        "    def __init__(self, layer, **choices):\n"
        "        super().__init__(layer, **choices)\n"
        "        self.register_buffer('running_count', self.v.new_zeros(()).long())\n"
        "    def forward(self, x):\n"
        "        self.running_count.add_(int(self.training))\n"
        "        return super().forward(x)\n",
    )
    plugins.load([file := own(tmp_path, text)])
    (record,) = train_sweep([tiny(tmp_path, file, optim={"ema_epochs": 1})])
    assert record.status == "finished"


def test_a_module_that_a_file_imports_is_told_to_be_in_no_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "imported_by_own.py").write_text("import colorsys\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load([own(tmp_path, "import imported_by_own\n" + NORM)])
    (warning,) = caplog.messages
    assert warning.startswith("own.py: imports imported_by_own.py, which is no part of a run's identity")


def test_images_beyond_a_vaes_range_are_not_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\nfrom wn import plugins\nx, y = np.full((20, 4), 0.5), np.arange(20) % 2\n"
    text += "plugins.data('fits')(lambda: ((x, y), (x, y)))\n"
    text += "plugins.data('wide')(lambda: ((4 * x, y), (4 * x, y)))\n"
    plugins.load([file := own(tmp_path, text)])
    settings = {"model": "mlp_vae", "data": "fits", "plugins": file, "runs_dir": str(tmp_path / "runs")}
    short = {"tracking.mode": "disabled", "trainer.save": True, "trainer.epochs": 1, "trainer.batch_size": 4}
    (record,) = train_sweep([compose({**settings, **short})])
    assert evaluate.main([str(record.folder), f"plugins={file}"]) == 0
    assert ", on fits\n" in capsys.readouterr().out
    assert evaluate.main([str(record.folder), f"plugins={file}", "data=wide"]) == 2
    assert "data=wide: a VAE takes floats from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bytes", "floats", "tensors"])
def test_a_data_set_is_scaled_and_divided_like_any_other(tmp_path: Path, kind: str) -> None:
    text = {
        "bytes": "x = np.arange(80, dtype=np.uint8).reshape(20, 2, 2)",
        "floats": "x = np.arange(80.0).reshape(20, 4)",
        "tensors": "x = torch.arange(80.0).reshape(20, 1, 2, 2)",
    }[kind]
    lines = ["import numpy as np, torch", "from wn import plugins", "@plugins.data('mine')", "def mine():"]
    lines += [f"    {text}", "    y = np.arange(20) % 2", "    return (x, y), (x[:4], y[:4])"]
    plugins.load([file := own(tmp_path, "\n".join(lines))])
    from wn.data import load

    found = load(compose({"data": "mine", "plugins": file}).data)
    assert (len(found.train.x), len(found.valid.x), len(found.test.x), found.classes) == (16, 4, 4, 2)
    assert found.train.x.dtype == torch.float32
    assert float(found.train.x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.train.x.std(correction=0)) == pytest.approx(1, abs=1e-6)
    whole = torch.cat([found.train.x, found.valid.x]).flatten(1)
    assert np.isclose(sorted(whole[:, 1] - whole[:, 0])[0], sorted(whole[:, 1] - whole[:, 0])[-1], atol=1e-5)
