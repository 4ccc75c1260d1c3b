"""Mistakes in a user's own file: one line each, and nothing trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plugin_cases import NORM, own
from train_cases import Call, records

from wn import plugins
from wn.config import UserError
from wn.config.compose import compose
from wn.sweep import train_sweep

HEAD = "from wn import plugins\nfrom torch import nn\n"
FORWARD = """
@plugins.model("m")
class M(nn.Module):
    def __init__(self, s, c, widths=0):
        super().__init__()
        self.a = nn.Linear(64, c)
        self.register_buffer("seen", self.a.bias.new_zeros(()))
    def forward(self, x):
        {}
"""
MISTAKES = {
    # text of the file, words, the line
    "no file": (None, "norm=mine", r"plugins=own\.py: no such file"),
    "a syntax error": ("def f(:\n", "", r"own\.py:1: SyntaxError: invalid syntax"),
    "an exception": (HEAD + "\n1 / 0\n", "", r"own\.py:4: ZeroDivisionError: division by zero"),
    "an exit": (HEAD + "exit(3)\n", "", r"own\.py:3: SystemExit: 3"),
    "nothing registered": (HEAD, "", r"own\.py: registers nothing; see plugins\.norm"),
    "a preset's name": (
        HEAD + "plugins.norm('none')(nn.Identity)\n",
        "",
        r"norm=none: this name is taken, by the project; choose another",
    ),
    "a name twice": (
        HEAD + "plugins.norm('a')(nn.Identity)\nplugins.norm('a')(nn.Identity)\n",
        "",
        r"norm=a: this name is taken, by own\.py; choose another",
    ),
    "a name that is none": (
        HEAD + "plugins.norm('a b')(nn.Identity)\n",
        "",
        "a name is of letters, digits and _",
    ),
    "another name": (NORM, "norm=min", r"norm=min: no such preset; did you mean 'mine'\?"),
    "no module": (
        HEAD + "plugins.norm('mine')(lambda layer: 3)\n",
        "norm=mine",
        r"norm=mine: returned int for Linear\(.*\), and should return a module",
    ),
    "a norm that fails": (
        HEAD + "@plugins.norm('mine')\ndef f(layer):\n    return layer.nothing\n",
        "norm=mine",
        r"own\.py:5: AttributeError: 'Linear' object has no attribute 'nothing'",
    ),
    "a choice that it does not take": (
        HEAD + "plugins.norm('mine')(lambda layer: layer)\n",
        "norm=mine norm.init=data",
        r"own\.py: TypeError: .*unexpected keyword argument 'init'",
    ),
    "a number of another type": (
        HEAD + "@plugins.model('m')\ndef f(shape, classes, widths: int = 3): ...\n",
        "model=m",
        r"model\.widths=\[4\]: Input should be a valid integer",
    ),
    "a builder without classes": (
        HEAD + "@plugins.model('m')\ndef f(shape): ...\n",
        "model=m",
        r"own\.py: TypeError: model=m should take \(shape, classes\), then numbers with defaults",
    ),
    "a number without a default": (
        HEAD + "@plugins.model('m')\ndef f(shape, classes, width: int): ...\n",
        "model=m",
        r"own\.py: TypeError: model=m should take \(shape, classes\), then numbers with defaults",
    ),
    "a number with a name that pydantic keeps": (
        HEAD + "@plugins.model('m')\ndef f(shape, classes, model_config=3): ...\n",
        "model=m",
        r"own\.py: TypeError: model=m should take .*, none of the name model_config",
    ),
    "dropout that no seed decides": (
        HEAD + "plugins.model('m')(lambda s, c, widths=0: nn.Sequential(nn.Dropout(0.5)))\n",
        "model=m",
        r"model=m: 0 is torch's Dropout, which draws .*; take wn\.models\.noise\.Dropout",
    ),
    "dropout by a function": (
        HEAD + FORWARD.format("return nn.functional.dropout(self.a(x.flatten(1)), 0.5, self.training)"),
        "model=m",
        r"model=m: its forward pass draws from torch's generator, .*; take wn\.models\.noise\.Dropout",
    ),
    "noise in evaluation": (
        HEAD
        + FORWARD.format("x = self.a(x.flatten(1)); return x if self.training else x + x.new(10).normal_()"),
        "model=m",
        "model=m: its forward pass draws from torch's generator",
    ),
    "a buffer that is replaced": (
        HEAD + FORWARD.format("self.seen = self.seen + 1; return self.a(x.flatten(1))"),
        "model=m",
        r"model=m: its forward pass puts another tensor in the place of the buffer seen, .* in place",
    ),
    "a layer that the norm does not take": (
        HEAD + FORWARD.format("return self.a(x.flatten(1))").replace("c)", "1)"),
        "model=m norm=layer_norm",
        r"model=m norm=layer_norm: a: statistics=layer of one unit would leave at most its sign\n",
    ),
    "test images of a VAE beyond 1": (
        "import numpy as np\n" + HEAD + "x, y = np.full((40, 4), 0.5), np.arange(40) % 2\n"
        "plugins.data('d')(lambda: ((x, y), (3 * x, y)))\n",
        "data=d model=mlp_vae",
        r"data=d: a VAE takes floats from 0 to 1",
    ),
    "data that are none": (
        HEAD + "plugins.data('d')(lambda: 3)\n",
        "data=d",
        r"data=d: should return \(\(x, y\), \(x_test, y_test\)\)",
    ),
    "no test images": (
        "import numpy as np\n" + HEAD + "x, y = np.zeros((40, 4)), np.arange(40) % 2\n"
        "plugins.data('d')(lambda: ((x, y), (x[:0], y[:0])))\n",
        "data=d",
        r"data=d: x and x_test need images",
    ),
    "labels of the test that nothing was trained on": (
        "import numpy as np\n" + HEAD + "x = np.zeros((40, 4))\n"
        "plugins.data('d')(lambda: ((x, np.arange(40) % 2), (x, np.arange(40) % 3)))\n",
        "data=d",
        r"data=d: y_test has the label 2, and those of y end at 1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_trained(call: Call, tmp_path: Path, mistake: str) -> None:
    text, words, line = MISTAKES[mistake]
    if text is not None:
        own(tmp_path, text)
    result = call(f"plugins=own.py {words}")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert re.search(line, result.err), result.err
    assert not records(tmp_path / "runs/adhoc")


RECOMPUTING = """
from torch import nn
from torch.utils.checkpoint import checkpoint
from wn import plugins

class Block(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)

@plugins.model("mine")
def build(shape, classes):
    return nn.Sequential(nn.Flatten(), Block(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, classes)))
"""


@pytest.mark.parametrize("members", [1, 2])
def test_a_model_that_recomputes_is_refused(tmp_path: Path, members: int) -> None:
    """Its backward pass would take the gradient at other weights, and nobody would notice."""
    plugins.load([file := own(tmp_path, RECOMPUTING)])
    common = {
        "model": "mine",
        "plugins": file,
        "runs_dir": str(tmp_path / "runs"),
        "tracking.mode": "disabled",
    }
    configs = [compose({**common, "trainer.epochs": 1, "seed": seed}) for seed in range(members)]
    for record in train_sweep(configs):
        assert record.status == "failed"
        assert "leave that out" in record.content["error"]


def test_a_file_that_is_edited_is_run_again(tmp_path: Path) -> None:
    file = own(tmp_path)
    plugins.load([file])
    first = plugins.find("norm", "mine")
    plugins.load([file])
    assert plugins.find("norm", "mine") is first
    old = compose({"norm": "mine", "plugins": file})
    own(tmp_path, NORM + "# edited\n")
    plugins.load([file])
    assert plugins.find("norm", "mine").sha256 != first.sha256
    with pytest.raises(UserError, match="another version than this run's"):
        plugins.check(old)
