"""VAEs through the whole house: one command, its record, its pictures, resuming, stacks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sweep_cases import outcome, vae
from torch import Tensor, nn
from train_cases import Call, records

from wn import metrics, resources
from wn.config import Config
from wn.models.vae import VAEBase
from wn.records import read_rows
from wn.run import png
from wn.stack import Stack
from wn.stops import Preempted
from wn.sweep import train_sweep
from wn.trainer import Observer, Trainer

WORDS = "model=mlp_vae optim=adamax norm=weight_norm_init trainer.images=32 trainer.iwae_samples=4"
PARTS = ("loss", "reconstruction", "kl")


def test_one_command(call: Call, tmp_path: Path) -> None:
    result = call(f"{WORDS} trainer.test_every=2 optim.ema_epochs=3")
    assert (result.status, result.err) == (0, "")
    ((run_id, record),) = records(tmp_path / "runs/adhoc").items()
    folder = tmp_path / "runs/adhoc" / run_id
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows if "test_loss" in row] == [0, 2]
    for row in rows[1:]:
        assert {f"{part}_{name}" for part in ("train", "valid") for name in PARTS} <= row.keys()
        assert row["valid_loss"] == pytest.approx(row["valid_reconstruction"] + row["valid_kl"], rel=1e-5)
    final = record["final"]
    assert final["test_loss"] == rows[-1]["test_loss"]  # looking twice sees the same
    assert final["test_nll"] < final["test_loss"]
    best = min(rows, key=lambda row: row["valid_loss"])
    assert record["best"] == {"epoch": best["epoch"], "valid_loss": best["valid_loss"]}
    assert rows[2]["valid_loss"] < rows[0]["valid_loss"]
    for name, images in (("reconstructions", 64), ("samples", 32)):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (16 * 9 + 1, images // 16 * 9 + 1)
            shades = picture.convert("L").getextrema()
            assert shades[0] < 100 < 150 < shades[1]
    assert "error" not in json.dumps({k: v for k, v in record.items() if k != "config"})


class Counted(nn.Module):
    """In place of a VAE: a bound and pictures that are known in closed form."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def iwae_bound(self, x: Tensor, samples: int) -> Tensor:
        return self.factor * x.flatten(1).sum(1) + samples

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.factor * x

    def generate(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.25) * self.factor


def test_a_bound_is_the_mean_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BATCH", 8)  # in parts of 2, 2, 2 and 1 image
    x = torch.rand(7, 1, 2, 2, dtype=torch.float64)
    parts = [*metrics.iwae_bounds(Stack([Counted(1.0), Counted(3.0)]), x, 3, contextlib.nullcontext)]
    assert [part.shape for part in parts] == [(2, 2), (2, 2), (2, 2), (2, 1)]
    expected = torch.stack([factor * x.flatten(1).sum(1) + 3 for factor in (1, 3)])
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_pictures_are_originals_each_with_its_reconstruction_and_samples() -> None:
    x, stack = torch.rand(3, 1, 2, 2, dtype=torch.float64), Stack([Counted(0.5), Counted(0.25)])
    found = metrics.pictures(stack, x, contextlib.nullcontext)
    for row, factor in enumerate((0.5, 0.25)):
        originals, reconstructions = (found["reconstructions"][row, i::2] for i in (0, 1))
        assert torch.equal(originals, x)
        assert torch.equal(reconstructions, factor * x)
        assert torch.equal(found["samples"][row], torch.full_like(x, 0.25 * factor))


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_many_channels_have_pictures(channels: int) -> None:
    with Image.open(io.BytesIO(png(torch.full((3, channels, 2, 2), 0.5)))) as picture:
        assert picture.size == (3 * 3 + 1, 4)


def test_pictures_can_be_left_out(call: Call, tmp_path: Path) -> None:
    assert call(f"{WORDS} trainer.images=0").status == 0
    assert not list(tmp_path.rglob("*.png"))


def test_looking_at_the_test_set_changes_no_training(tmp_path: Path) -> None:
    seldom, often = tmp_path / "seldom", tmp_path / "often"
    train_sweep([vae(seldom)])
    train_sweep([vae(often, test_every=1, images=0)])
    ours, theirs = outcome(seldom), outcome(often)
    assert ours.keys() == theirs.keys()  # and it is no part of the identity
    for run_id, record in ours.items():
        assert record["record"]["final"] == theirs[run_id]["record"]["final"]


def trainer_of(configs: list[Config]) -> Trainer:
    device, dataset = resources.resolve(configs[0])
    trainer = Trainer(configs, dataset, device, Observer())
    trainer.run()
    return trainer


def test_members_of_a_stack_are_the_runs_alone(tmp_path: Path) -> None:
    configs = [vae(tmp_path, seed, precision="float64", epochs=10) for seed in range(3)]
    together = trainer_of(configs)
    for row, config in enumerate(configs):
        alone = trainer_of([config])
        for name, tensor in alone.stack.params.items():
            torch.testing.assert_close(together.stack.params[name][row], tensor[0], rtol=1e-9, atol=1e-11)
        for part, values in alone.evaluate("test").items():
            assert together.evaluate("test")[part][row] == pytest.approx(values[0], rel=1e-9)


def test_what_is_evaluated_is_the_average(tmp_path: Path) -> None:
    """A long average of a run that moves is neither its end nor its beginning; without one it is its end."""
    trainer = trainer_of([vae(tmp_path, precision="float64")])
    assert trainer.average is not None
    averaged = trainer.evaluate("valid")
    values = trainer.average.values()
    trainer.average = None
    newest = trainer.evaluate("valid")
    assert averaged != newest
    stack = trainer.stack.with_state(values)
    assert metrics.means(stack, trainer.objective, trainer.data.valid, trainer.autocast) == {
        name.removeprefix("valid_"): value for name, value in averaged.items()
    }
    trainer.stack.load({k: values[k] for k in trainer.stack.params}, trainer.stack.buffers)
    assert trainer.evaluate("valid") == averaged


def test_a_kill_in_the_last_evaluation_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "iwae_bounds", killed)
        with pytest.raises(KeyboardInterrupt):
            train_sweep([vae(tmp_path)])
    assert len(steps) == 6
    train_sweep([vae(tmp_path)])
    assert len(steps) == 6
    (record,) = outcome(tmp_path).values()
    assert record["record"]["status"] == "finished"


@pytest.mark.parametrize(
    ("then", "images"), [({}, 40), ({"iwae_samples": 200}, 60), ({"iwae_images": 20}, 40)]
)
def test_a_stop_amid_the_last_bound_costs_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, int], images: int
) -> None:
    """The same command goes on after the parts that are known, to the number of an undisturbed run; with
    other settings of the bound, which are no part of the run's identity, it measures all of it anew."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_sweep([vae(whole, **{"iwae_samples": 100, **then})])
    bounds, parts = VAEBase.iwae_bound, []

    def counted(self: VAEBase, x: Tensor, samples: int) -> Tensor:
        parts.append(len(x))
        if len(parts) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return bounds(self, x, samples)

    monkeypatch.setattr(VAEBase, "iwae_bound", counted)
    with pytest.raises(Preempted, match="SIGTERM"):
        train_sweep([vae(stopped, iwae_samples=100)])
    assert len(parts) == 2
    train_sweep([vae(stopped, **{"iwae_samples": 100, **then})])
    (ours,), (theirs,) = outcome(whole).values(), outcome(stopped).values()
    assert sum(parts) == images
    assert ours["record"]["final"] == theirs["record"]["final"]
