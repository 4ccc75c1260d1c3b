"""An installed project: the user's own presets and experiments are those of the current folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from train_cases import Call, records

from wn import experiments
from wn.config import UserError, places
from wn.config.compose import _preset, compose

TREE = {
    "title": "t",
    "claim": "c",
    "fixed": {"model": "mlp"},
    "grid": {"norm": ["folder_s_own"], "seed": [0]},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with presets and experiments of the user's, two of which have names of the project's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "INSTALLED", True)
    for name in ("norm/folder_s_own", "norm/batch_norm"):
        path = tmp_path / f"configs/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("direction: row\ngain: fixed\n")
    for name in ("mine", "vae_lr"):
        path = tmp_path / f"experiments/{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(TREE))
    _preset.cache_clear()
    yield tmp_path
    _preset.cache_clear()


def test_they_are_found_beside_the_project_s(own: Path, call: Call) -> None:
    assert compose({"norm": "folder_s_own"}).norm.gain == "fixed"
    assert {"mine", "cifar10_table"} < {*experiments.names()}
    assert [run.config.norm.gain for run in experiments.load("mine").runs()] == ["fixed"]
    result = call("-m norm=folder_s_own,none trainer.epochs=1")
    assert (result.status, result.err) == (0, "")
    assert {r["config"]["norm"]["gain"] for r in records(own / "runs/adhoc").values()} == {"fixed", "none"}


def test_a_name_of_the_project_s_is_refused(own: Path, call: Call) -> None:
    line = "configs/norm/batch_norm.yaml: the project has one of that name; give yours another"
    with pytest.raises(UserError, match=f"^{line}$"):
        compose({"norm": "batch_norm"})
    for words in ("norm=batch_norm", "-m norm=none,batch_norm"):
        result = call(words)
        assert (result.status, result.out, result.err) == (2, "", f"error: {line}\n")
    with pytest.raises(UserError, match=r"^experiments/vae_lr.yaml: the project has one of that name"):
        experiments.load("vae_lr")
    assert call("norm=none trainer.epochs=1").status == 0  # it stops those alone who ask for it


def test_in_a_checkout_the_project_s_are_all(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "INSTALLED", False)
    _preset.cache_clear()
    assert "mine" not in experiments.names()
    assert compose({"norm": "batch_norm"}).norm.gain == "free"
