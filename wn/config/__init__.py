"""Typed configuration: what a run is, checked before anything is loaded or trained.

Hydra, or :func:`wn.config.compose.compose`, makes a plain dictionary of presets and overrides, and
:func:`parse` turns it into a :class:`Config`. This package imports no torch and no Hydra, so the report
can read configurations too. **The defaults are here and nowhere else**; a preset says what differs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

import pydantic

from wn import grammar
from wn.config import errors
from wn.config.data import DataConfig as DataConfig
from wn.config.errors import UserError as UserError
from wn.config.errors import explain_key as explain_key
from wn.config.errors import nearest as nearest
from wn.config.files import hashes as hashes
from wn.config.models import ConvNetConfig as ConvNetConfig
from wn.config.models import ConvVAEConfig as ConvVAEConfig
from wn.config.models import MLPConfig as MLPConfig
from wn.config.models import MLPVAEConfig as MLPVAEConfig
from wn.config.models import Model as Model
from wn.config.models import PluginModelConfig as PluginModelConfig
from wn.config.models import ResNetVAEConfig as ResNetVAEConfig
from wn.config.models import Section
from wn.config.models import TransformerConfig as TransformerConfig
from wn.config.models import VAEConfig as VAEConfig
from wn.config.models import WeightInit as WeightInit
from wn.config.norm import NormConfig as NormConfig
from wn.config.yaml_files import listed

SCHEMA = 2
"""Version of what a configuration means. Raise it when the same settings lead to other numbers, and when a
default changes: a field at its default is no part of a run's identity."""


class OptimConfig(Section):
    """Update rule and schedule."""

    name: Literal["sgd", "adam", "adamax"] = "sgd"
    lr: pydantic.PositiveFloat = 0.1
    lr_gain: pydantic.PositiveFloat | None = None
    """Learning rate of gains (g, and gamma of statistics); null: that of the weights."""
    lr_bias: pydantic.PositiveFloat | None = None
    lr_gain_cap: pydantic.PositiveFloat | None = None
    """Upper bound of the gains' learning rate, min(lr, cap); null: none."""
    lr_bias_cap: pydantic.PositiveFloat | None = None
    momentum: float = pydantic.Field(default=0.9, ge=0, lt=1)
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
    ema_epochs: float = pydantic.Field(default=0.0, ge=0)
    """Time constant, in epochs, of the EMA of the parameters that is evaluated; 0: no EMA."""

    @property
    def adaptive(self) -> bool:
        """Whether the size of a step does not depend on the gradient's."""
        return self.name != "sgd"


class TrainerConfig(Section):
    """The loop: how long, how large a batch, at which precision, and where."""

    epochs: pydantic.PositiveInt = 30
    batch_size: pydantic.PositiveInt = 100
    init_batch_size: pydantic.PositiveInt = 500
    """Images of the data-dependent initialisation."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """tf32: TF32 matrix products on a GPU, float32 elsewhere; bfloat16: autocast."""
    device: str = "auto"
    """auto (every GPU, else MPS, else the CPU), cuda, cuda:1, mps or cpu."""
    probe_every: pydantic.PositiveInt = 10
    """Epochs between two measurements of ||v||, g and the relative update; also after 0, 1, 2, 4, ... and at
    the end."""
    checkpoint_every: pydantic.PositiveInt = 10
    """Epochs between two checkpoints; there is one every minute as well."""
    max_minutes: pydantic.PositiveFloat | None = None
    """For the whole command: then it stops with a checkpoint and exit status 75 (as at SIGUSR1, SIGUSR2)."""
    test_every: pydantic.NonNegativeInt = 0
    """Evaluate on the test set every so many epochs (0: only at the end), for plotting (figure 3)."""
    iwae_samples: pydantic.PositiveInt = 128
    """Importance samples of the IWAE bound that a VAE is finally evaluated with."""
    iwae_images: pydantic.PositiveInt | None = None
    """Test images that the IWAE bound is taken on, the first so many; null takes all."""
    images: pydantic.NonNegativeInt = 64
    """Reconstructions, and samples, that a finished VAE leaves as pictures; 0: none."""
    deterministic: bool = False
    """On a GPU, which costs speed; a CPU's algorithms always are."""
    compile: bool = False
    """Compile the whole step: a minute or more at the start; meant for GPUs (docs/LOG.md)."""
    cuda_graph: bool = True
    """On a GPU, capture the step as a CUDA graph."""
    progress: bool = True
    dry_run: bool = False
    """Train nothing; say how many runs, how long, and how large."""
    save: bool | None = None
    """Keep the trained model beside the record, as wn.load takes it; null: that of a run trained alone."""
    force: bool = False
    """Train again what is done; its old record is replaced when the new one is complete (wn/again.py)."""


class TrackingConfig(Section):
    """The W&B mirror of the records."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where a key is known, offline otherwise; there is never a prompt."""
    project: str = "weight-normalization"
    entity: str | None = None
    group: str | None = None
    """null: the experiment's name; an adhoc sweep has a group of its own."""


DECIDING = {
    "data": set(DataConfig.model_fields) - {"root", "download"},
    "trainer": {"epochs", "batch_size", "init_batch_size", "precision"},
}
"""Of sections that decide numbers in part: the fields that do. All others only say where, and how watched."""

PLACES = ("tracking", "experiment_name", "runs_dir")
"""What decides no number."""

STACKABLE = {
    "optim": (
        *("lr", "lr_gain", "lr_bias", "lr_gain_cap", "lr_bias_cap"),
        *("momentum", "beta2", "eps", "weight_decay", "late_momentum"),
    ),
    "model": ("noise", "dropout"),
}
"""Numbers, beside the seed, in which a stack's members may differ: no shape or branch depends on them."""


class Config(Section):
    """Everything that one run is."""

    model: Model = pydantic.Field(default=MLPConfig(), discriminator="name")
    norm: NormConfig = NormConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    trainer: TrainerConfig = TrainerConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    plugins: dict[str, str] = pydantic.Field(default={})
    """Files of the user's own code, by name, and their SHA-256. May be given as paths, which are read and not
    run: :func:`wn.plugins.load` runs what the user names."""
    experiment_name: str = pydantic.Field(default="adhoc", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    runs_dir: str = pydantic.Field(default="runs", min_length=1)

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _default_model(cls, model: Any) -> Any:
        return {"name": MLPConfig().name, **model} if isinstance(model, dict) else model

    @pydantic.field_validator("runs_dir")
    @classmethod
    def _no_home(cls, folder: str) -> str:
        if folder.partition("/")[0] == "~":
            raise ValueError(f"{folder}: the shell has left the ~ as it is; write the whole path")
        return folder

    @pydantic.field_validator("plugins", mode="before")
    @classmethod
    def _hashes(cls, files: Any) -> Any:
        return files if isinstance(files, dict) else hashes(listed(files))

    @pydantic.model_validator(mode="after")
    def _own_code_is_named(self) -> Self:
        for group, name in self.own.items():
            if not self.plugins:
                raise UserError(
                    f"{group}={name}: name the file that registers it, as in plugins=[my_{group}.py]"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _latents_keep_their_order(self) -> Self:
        statistics = self.norm.statistics
        if getattr(self.model, "posterior", None) == "iaf" and statistics in grammar.PER_IMAGE:
            why = "mixes latents, of which model.posterior=iaf needs each to see earlier ones alone"
            raise UserError(f"norm.statistics={statistics} {why}: write model.posterior=diagonal")
        return self

    @property
    def own(self) -> dict[str, str]:
        """What is of the user's own code: ``norm``, ``model``, ``data``, and its name."""
        sections = {name: getattr(self, name) for name in ("norm", "model", "data")}
        return {name: s.plugin for name, s in sections.items() if getattr(s, "plugin", None) is not None}

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, without fields at their defaults: one more field changes no identity.

        The user's files count by their content, all that are named, wherever a part of the run is of them.
        """
        identity: dict[str, Any] = {"schema": SCHEMA, "seed": self.seed, "model": {"name": self.model.name}}
        for section, fields in self.model_dump(
            mode="json", exclude_defaults=True, exclude={"plugins"}
        ).items():
            parts = fields if isinstance(fields, dict) else {}  # the seed is there, and names decide nothing
            if kept := {key: value for key, value in parts.items() if decides(f"{section}.{key}")}:
                identity[section] = identity.get(section, {}) | kept
        if self.own:
            identity["plugins"] = sorted(self.plugins.values())
        return identity

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits: SHA-256 of :meth:`identity` as canonical JSON."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def stack_key(self) -> str:
        """Equal for runs that can train as one stack: those that differ in :data:`STACKABLE` alone."""
        whole = self.model_dump(mode="json", exclude={"seed": True, "optim": set(STACKABLE["optim"])})
        for key in STACKABLE["model"]:  # a stack has noise layers or it has none
            if self.model.name != "plugin":  # what its numbers do is not known
                whole["model"][key] = bool(whole["model"].get(key))
        return json.dumps(whole, sort_keys=True)

    def placed_as(self, other: Config) -> Config:
        """This run with all that is no part of the identity taken from another: device, folders, tracking."""
        places = {key: getattr(other, key) for key in PLACES}
        for name, deciding in DECIDING.items():
            kept = {field: getattr(getattr(self, name), field) for field in deciding}
            places[name] = getattr(other, name).model_copy(update=kept)
        return self.model_copy(update=places)


def idle(config: Config) -> list[str]:
    """A line for each setting of the optimiser or the batches that was given and does not do what it says."""
    norm, optim = config.norm, config.optim
    kept = norm.gain in ("none", "fixed", "fixed_layer") and norm.statistics != "dyt"  # which trains alpha
    gainless = norm.plugin is None and kept and f"norm={norm.label} trains no gain"
    sgd = optim.name == "sgd" and "optim=sgd has none"
    constant = optim.schedule == "constant" and "optim.schedule=constant has no late part"
    without = {
        **{"lr_gain": gainless, "lr_gain_cap": gainless},
        **{"beta2": sgd, "eps": sgd, "eps_inside_root": sgd},
        **{"late_momentum": constant, "decay_from": constant},
    }
    default = type(optim)()
    given = {key: why for key, why in without.items() if getattr(optim, key) != getattr(default, key)}
    lines = [f"optim.{key} has no effect: {why}" for key, why in given.items() if why]
    alone = grammar.properties(norm.model_dump(), dense=True).batch_of_one if norm.plugin is None else True
    if config.trainer.batch_size == 1 and not alone:
        lines.append(f"trainer.batch_size=1: norm={norm.label} leaves nothing of one image in a dense layer")
    return lines


def decides(key: str) -> bool:
    """Whether a group (``norm``) or dotted field (``optim.lr``) is part of a run's identity.

    >>> decides("optim.lr"), decides("trainer.device"), decides("trainer.precision"), decides("tracking")
    (True, False, True, False)
    """
    section, _, field = key.partition(".")
    return section not in PLACES and (not field or section not in DECIDING or field in DECIDING[section])


def parse(tree: dict[str, Any]) -> Config:
    """Check a plain dictionary and return the configuration.

    Raises:
        UserError: one line that names the key, what is wrong with it, and what would be right.

    >>> parse({"optim": {"lr": 0}})
    Traceback (most recent call last):
    ...
    wn.config.errors.UserError: optim.lr=0: Input should be greater than 0
    """
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(errors.explain(Config, error)) from None
