"""The check of a GPU, with the CPU in the GPU's place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "scripts"))

import gpu_check  # the project's scripts are no package


@pytest.mark.parametrize("norm", gpu_check.NORMS)
def test_the_cpu_passes_in_the_gpus_place(norm: str):
    rows = gpu_check.compare("mlp", norm, "cpu", compiled=False)
    assert [what for what, *_ in rows] == [
        "device against CPU",
        "captured against eager",
        "stack of 2, one dropped, against alone",
        "resumed against uninterrupted",
    ]
    assert all(fine for *_, fine in rows)


def test_a_device_that_is_not_here_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cuda:99"])
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "gpu_check.py: error: --device cuda:99: not available here; --device cpu compares without a GPU"
    )


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--device", "cpu", "--no-cost"]])
def test_go_is_said_of_something_that_was_checked(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--cost-only", *words])
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main()
    assert stopped.value.code == 2


def test_costs_are_those_of_the_table_s_norms():
    assert {"scaled_init", "weight_norm", "batch_norm", "weight_norm_mean_only_bn_init"} < {*gpu_check.TABLE}


def test_a_wrong_step_and_other_noise_are_seen():
    model = {"name": "mlp", **gpu_check.MODELS["mlp"]}
    start, right, wrong = (gpu_check.trainer_of(model, "batch_norm", "cpu", 160) for _ in range(3))
    other = gpu_check.trainer_of(model, "batch_norm", "cpu", 160)
    gpu_check.advance(right, 0, 8)
    wrong.optimizer.hyper["lr"] *= 1.01
    gpu_check.advance(wrong, 0, 8)
    loss, moved = gpu_check.difference(wrong, right, start)
    assert loss > gpu_check.SAME[0]
    assert moved == pytest.approx(0.01, rel=0.5)
    gpu_check.advance(other, 0, 7)  # its noise is a step behind
    assert gpu_check.difference(other, right, start) == (float("inf"), float("inf"))
