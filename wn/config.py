"""Typed configuration: what a run is, checked before anything is loaded or trained.

Hydra composes ``configs/`` into a plain dictionary and :func:`parse` turns that into a
:class:`Config`. A key that nobody reads and a value out of range are errors of one line. This
module imports no torch and no Hydra, so the report can read configurations too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, Literal

import pydantic

SCHEMA = 1
"""Version of what a configuration means. Raise it when the same keys lead to other numbers."""


class UserError(Exception):
    """Something the user can mend; its text is the one line that the user is shown."""


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Probability = pydantic.Field(default=0.0, ge=0, lt=1)


class MLP(Section):
    """A multilayer perceptron; ``widths`` are its hidden layers."""

    name: Literal["mlp"] = "mlp"
    widths: tuple[pydantic.PositiveInt, ...] = (128, 128)
    activation: Literal["relu", "leaky_relu", "elu", "tanh"] = "relu"
    noise: float = pydantic.Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian noise on the input."""
    dropout: float = Probability
    """Probability of dropping a hidden activation."""
    draw: Literal["he", "paper"] = "he"
    """Law of the initial weights: He's normal(0, sqrt(2/fan_in)) or the paper's normal(0, 0.05)."""


class Norm(Section):
    """Three independent choices; a preset of the group ``norm`` is a named combination."""

    weight: Literal["plain", "weight_norm"] = "plain"
    stats: Literal["none", "batch", "mean_only"] = "none"
    init: Literal["default", "data"] = "default"
    eps: pydantic.PositiveFloat = 1e-6
    """Added to the variance inside the root (batch statistics)."""
    momentum: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of the newest batch in the running averages."""
    correction: Literal["images", "samples"] = "images"
    """The n of the running variance's n/(n-1): images (the authors) or images x places (torch)."""

    @property
    def label(self) -> str:
        """The preset's name, or the three choices joined where no preset has them."""
        choices = (self.weight, self.stats, self.init)
        return PRESETS.get(choices, "+".join(choices))


PRESETS = {
    ("plain", "none", "default"): "none",
    ("plain", "none", "data"): "none_init",
    ("plain", "batch", "default"): "batch_norm",
    ("weight_norm", "none", "default"): "weight_norm",
    ("weight_norm", "none", "data"): "weight_norm_init",
    ("plain", "mean_only", "default"): "mean_only_bn",
    ("weight_norm", "mean_only", "default"): "weight_norm_mean_only_bn",
}


class Data(Section):
    """A data set, how much of it is trained on, and how it is scaled."""

    name: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    root: str | None = None
    """Folder with the files; where it is decides no number, so it is no part of a run's identity."""
    download: bool = True
    valid_fraction: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Share of the training images held out, stratified by label, to choose a learning rate on."""


class Optim(Section):
    """Update rule and schedule."""

    name: Literal["sgd", "adam", "adamax"] = "sgd"
    lr: pydantic.PositiveFloat = 0.01
    momentum: float = Probability
    """SGD's momentum; beta1 of Adam and Adamax."""
    beta2: float = pydantic.Field(default=0.999, ge=0, lt=1)
    eps: pydantic.PositiveFloat = 1e-8
    eps_inside_root: bool = False
    """Adam divides by sqrt(v + eps), as the authors' code does, instead of sqrt(v) + eps."""
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    """L2 penalty on weights and directions; gains and biases are left alone."""
    schedule: Literal["constant", "constant_then_linear"] = "constant"
    decay_from: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """constant_then_linear: share of the epochs after which the learning rate falls linearly to zero."""
    late_momentum: float | None = pydantic.Field(default=None, ge=0, lt=1)
    """constant_then_linear: momentum from that epoch on; null keeps it."""


class Trainer(Section):
    """The loop: how long, how large a batch, at which precision, and where."""

    epochs: pydantic.PositiveInt = 30
    batch_size: pydantic.PositiveInt = 100
    init_batch_size: pydantic.PositiveInt = 500
    """Images of the data-dependent initialisation."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cuda, cuda:1, mps or cpu."""
    probe_every: pydantic.PositiveInt = 10
    """Epochs between two measurements of ||v||, g and the relative update; also after 0, 1, 2, 4, ..."""
    checkpoint_every: pydantic.PositiveInt = 10
    """Epochs between two checkpoints."""
    progress: bool = True


class Tracking(Section):
    """The W&B mirror of the records."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where a key is known, offline otherwise; there is never a prompt."""
    project: str = "weight-normalization"
    entity: str | None = None


class Config(Section):
    """Everything that one run is."""

    model: MLP = MLP()
    norm: Norm = Norm()
    data: Data = Data()
    optim: Optim = Optim()
    trainer: Trainer = Trainer()
    tracking: Tracking = Tracking()
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    experiment_name: str = pydantic.Field(default="adhoc", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    runs_dir: str = pydantic.Field(default="runs", min_length=1)

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, as plain data: not where the run happened, nor who watched it."""
        whole = self.model_dump(mode="json")
        data = {k: v for k, v in whole["data"].items() if k not in ("root", "download")}
        deciding = ("epochs", "batch_size", "init_batch_size", "precision")
        trainer = {k: whole["trainer"][k] for k in deciding}
        sections = {k: whole[k] for k in ("model", "norm", "optim", "seed")}
        return {"schema": SCHEMA, **sections, "data": data, "trainer": trainer}

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits: SHA-256 of :meth:`identity` as canonical JSON."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def stack_key(self) -> str:
        """Equal for runs that can train as one stack: those that differ in :data:`STACKABLE` alone.

        Noise may differ among those that have any: without it there is no layer for it.
        """
        whole = self.model_dump(mode="json")
        for section, keys in STACKABLE.items():
            for key in keys:
                value = whole[section].pop(key)
                whole[section][f"any {key}"] = section == "model" and value > 0
        del whole["seed"]
        return json.dumps(whole, sort_keys=True)


STACKABLE = {
    "optim": ("lr", "momentum", "beta2", "eps", "weight_decay", "late_momentum"),
    "model": ("noise", "dropout"),
}
"""Numbers, beside the seed, in which a stack's members may differ: no shape or branch depends on them."""


def parse(tree: dict[str, Any]) -> Config:
    """Check a plain dictionary and return the configuration.

    Raises:
        UserError: one line that names the key, what is wrong with it, and what would be right.

    >>> parse({"optim": {"lr": 0}})
    Traceback (most recent call last):
    ...
    wn.config.UserError: optim.lr=0: Input should be greater than 0
    """
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError("; ".join(_explain(e, tree) for e in error.errors())) from None


def _explain(error: Any, tree: dict[str, Any]) -> str:
    """One of pydantic's findings in one line."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return explain_key(key)
    return f"{key}={error['input']}: {error['msg']}"


def explain_key(key: str) -> str:
    """Why there is no such dotted key in a composed configuration, in one line.

    >>> explain_key("optim.lrr")
    "optim.lrr: unknown key; did you mean 'lr'?"
    """
    section: Any = Config
    for part in key.split("."):
        fields = _fields(section)
        if part not in fields:
            owners = [name for name, f in Config.model_fields.items() if part in _fields(f.annotation)]
            if section is Config and owners:
                return f"{key}: unknown key; did you mean {' or '.join(f'{o}.{part}' for o in owners)}?"
            return f"{key}: unknown key{nearest(part, list(fields))}"
        section = fields[part].annotation
    return f"{key}: the chosen preset does not set it; to set it, write +{key}=..."


def _fields(section: Any) -> dict[str, Any]:
    """A section's fields; none where it is no section but a value."""
    fields: dict[str, Any] = getattr(section, "model_fields", {})
    return fields


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or the list of known words.

    >>> nearest("sede", ["seed", "norm"])
    "; did you mean 'seed'?"
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"
