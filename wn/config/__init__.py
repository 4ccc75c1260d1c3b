"""Typed configuration: what a run is, checked before anything is loaded or trained.

Hydra composes ``configs/`` into a plain dictionary and :func:`parse` turns that into a
:class:`Config`. A key that nobody reads and a value out of range are errors of one line. This
module imports no torch and no Hydra, so the report can read configurations too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, Literal, get_args

import pydantic

from wn.config.models import MLP as MLP
from wn.config.models import MLPVAE as MLPVAE
from wn.config.models import VAE as VAE
from wn.config.models import ConvNet as ConvNet
from wn.config.models import ConvVAE as ConvVAE
from wn.config.models import Draw as Draw
from wn.config.models import Model as Model
from wn.config.models import Probability, Section
from wn.config.models import ResNetVAE as ResNetVAE

SCHEMA = 1
"""Version of what a configuration means. Raise it when the same keys lead to other numbers."""


class UserError(Exception):
    """Something the user can mend; its text is the one line that the user is shown."""


class Norm(Section):
    """Three independent choices; a preset of the group ``norm`` is a named combination."""

    weight: Literal["plain", "scaled", "weight_norm"] = "plain"
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
    ("scaled", "none", "data"): "scaled_init",
    ("weight_norm", "none", "default"): "weight_norm",
    ("weight_norm", "none", "data"): "weight_norm_init",
    ("plain", "mean_only", "default"): "mean_only_bn",
    ("plain", "mean_only", "data"): "mean_only_bn_init",
    ("weight_norm", "mean_only", "default"): "weight_norm_mean_only_bn",
    ("weight_norm", "mean_only", "data"): "weight_norm_mean_only_bn_init",
}


class Data(Section):
    """A data set, how much of it is trained on, and how it is scaled."""

    name: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    root: str | None = None
    """Folder with the files; where it is decides no number, so it is no part of a run's identity."""
    download: bool = True
    train_fraction: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Share of the training images that are used at all, stratified by label: for small experiments."""
    valid_fraction: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Share of these held out, stratified by label, to choose a learning rate on."""
    whiten: bool = False
    """ZCA whitening as in the authors' code (wn/data/whitening.py) instead of one mean and one scale."""
    binarize: bool = False
    """Each pixel drawn black or white once, with its grey level as probability, the same in every run."""


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
    average_epochs: float = pydantic.Field(default=0.0, ge=0)
    """Time constant of the exponential moving average of the parameters that is evaluated; 0 has none."""


class Trainer(Section):
    """The loop: how long, how large a batch, at which precision, and where."""

    epochs: pydantic.PositiveInt = 30
    batch_size: pydantic.PositiveInt = 100
    init_batch_size: pydantic.PositiveInt = 500
    """Images of the data-dependent initialisation."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """tf32 rounds the factors of a GPU's products and is float32 elsewhere; bfloat16 is autocast."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cuda, cuda:1, mps or cpu."""
    probe_every: pydantic.PositiveInt = 10
    """Epochs between two measurements of ||v||, g and the relative update; also after 0, 1, 2, 4, ..."""
    checkpoint_every: pydantic.PositiveInt = 10
    """Epochs between two checkpoints; there is one every minute as well."""
    max_minutes: pydantic.PositiveFloat | None = None
    """Of the whole command, all its runs together: then it stops with a checkpoint and exit status 75."""
    test_every: pydantic.NonNegativeInt = 0
    """Epochs between two looks at the test set, for a curve that is published so; 0 looks at the end."""
    importance_samples: pydantic.PositiveInt = 128
    """Of the importance-weighted bound that a VAE ends with."""
    importance_images: pydantic.PositiveInt | None = None
    """The first so many test images alone have that bound taken; null takes all."""
    images: pydantic.NonNegativeInt = 64
    """Reconstructions, and samples, that a VAE ends with as pictures; 0 draws none."""
    deterministic: bool = False
    """On a GPU, the same operation gives the same bits each time, which costs speed; a CPU's always do."""
    compile: bool = False
    """Have torch compile the whole step: a minute at the start, and about twice the speed after it."""
    cuda_graph: bool = True
    """On a GPU, replay the step as one graph."""
    progress: bool = True


class Tracking(Section):
    """The W&B mirror of the records."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where a key is known, offline otherwise; there is never a prompt."""
    project: str = "weight-normalization"
    entity: str | None = None


class Config(Section):
    """Everything that one run is."""

    model: Model = pydantic.Field(default=MLP(), discriminator="name")
    norm: Norm = Norm()
    data: Data = Data()
    optim: Optim = Optim()
    trainer: Trainer = Trainer()
    tracking: Tracking = Tracking()
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    experiment_name: str = pydantic.Field(default="adhoc", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    runs_dir: str = pydantic.Field(default="runs", min_length=1)

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _name_the_model(cls, model: Any) -> Any:
        """Settings without a name are the default model's."""
        return {"name": MLP().name, **model} if isinstance(model, dict) else model

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, as plain data: not where the run happened, nor who watched it."""
        whole = self.model_dump(mode="json")
        for section, settings in LATER.items():
            kept = {k: v for k, v in whole[section].items() if k not in settings or v != settings[k]}
            whole[section] = kept
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
                value = whole[section].pop(key, 0.0)
                whole[section][f"any {key}"] = section == "model" and value > 0
        del whole["seed"]
        return json.dumps(whole, sort_keys=True)


STACKABLE = {
    "optim": ("lr", "momentum", "beta2", "eps", "weight_decay", "late_momentum"),
    "model": ("noise", "dropout"),
}
"""Numbers, beside the seed, in which a stack's members may differ: no shape or branch depends on them."""

LATER: dict[str, dict[str, Any]] = {
    "data": {"train_fraction": 1.0, "whiten": False, "binarize": False},
    "optim": {"average_epochs": 0.0},
}
"""Settings that came after schema 1, with the value that means what was meant before there was a choice.
At that value they are no part of a run's identity, so that the runs of before keep theirs."""


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
        raise UserError("; ".join(map(_explain, error.errors()))) from None


def _explain(error: Any) -> str:
    """One of pydantic's findings in one line."""
    section, *rest = map(str, error["loc"])
    if section == "model":
        rest = rest[1:]  # which model it is comes first
    key = ".".join([section, *rest])
    if error["type"] == "extra_forbidden":
        return explain_key(key)
    if error["type"] == "union_tag_invalid":
        return f"{key}.name={error['ctx']['tag']}: should be one of {error['ctx']['expected_tags']}"
    return f"{key}={error['input']}: {error['msg']}"


def explain_key(key: str) -> str:
    """Why there is no such dotted key in a composed configuration, in one line.

    >>> explain_key("optim.lrr")
    "optim.lrr: unknown key; did you mean 'lr'?"
    >>> explain_key("model.depth")
    'model.depth: a key of model=convnet or resnet_vae alone'
    """
    section: Any = Config
    for part in key.split("."):
        fields = _fields(section)
        if part not in fields:
            owners = [name for name, f in Config.model_fields.items() if part in _fields(f.annotation)]
            if section is Config and owners:
                return f"{key}: unknown key; did you mean {' or '.join(f'{o}.{part}' for o in owners)}?"
            return f"{key}: unknown key{nearest(part, list(fields))}"
        models = [model for model in get_args(section) if part in _fields(model)]
        if len(models) < len(get_args(section)):
            return f"{key}: a key of model={' or '.join(model().name for model in models)} alone"
        section = fields[part].annotation
    return f"{key}: the chosen preset does not set it; to set it, write +{key}=..."


def _fields(section: Any) -> dict[str, Any]:
    """The fields of a section, or of all that it may be; none where it is no section but a value."""
    fields: dict[str, Any] = dict(getattr(section, "model_fields", {}))
    for model in get_args(section):
        fields |= _fields(model)
    return fields


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or the list of known words.

    >>> nearest("sede", ["seed", "norm"])
    "; did you mean 'seed'?"
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"
