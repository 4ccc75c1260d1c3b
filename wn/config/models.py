"""The architectures, and what can be chosen of each."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import pydantic

from wn.config.errors import short


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, tree: Any) -> Any:
        """Python takes True for 1; as text it is refused with the field's name."""
        if not isinstance(tree, dict):
            return tree
        switches = {key for key, field in cls.model_fields.items() if field.annotation is bool}
        numbers = {k: v for k, v in tree.items() if isinstance(v, bool) and k not in switches}
        return {**tree, **{key: str(value).lower() for key, value in numbers.items()}}


def _name_or_deviation(value: Any, known: pydantic.ValidatorFunctionWrapHandler) -> Any:
    """Of a union pydantic tells what is wrong for each of its members; here one sentence says it."""
    try:
        return known(value)
    except pydantic.ValidationError:
        raise ValueError(
            f"{short(value)} is neither he, paper or glorot nor a standard deviation above 0"
        ) from None


WeightInit = Annotated[
    Literal["he", "paper", "glorot"] | pydantic.PositiveFloat, pydantic.WrapValidator(_name_or_deviation)
]
"""Initial weights, by name or by their standard deviation: see :func:`wn.models.init.init_weights_`."""

Widths = tuple[pydantic.PositiveInt, ...]
SomeWidths = Annotated[Widths, pydantic.Field(min_length=1)]


class MLPConfig(Section):
    """A multilayer perceptron with hidden layers of ``widths``."""

    name: Literal["mlp"] = "mlp"
    widths: Widths = (128, 128)
    activation: Literal["relu", "leaky_relu", "elu", "tanh"] = "relu"
    noise: float = pydantic.Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian noise on the input."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    weight_init: WeightInit = "he"


class ConvNetConfig(Section):
    """The network of section 5.1: three blocks of convolutions, the last of which ends 1x1."""

    name: Literal["convnet"] = "convnet"
    activation: ClassVar[str] = "leaky_relu"
    width: pydantic.PositiveInt = 96
    """Channels of the first block; the others have twice as many."""
    depth: pydantic.PositiveInt = 3
    """Convolutions in a block."""
    noise: float = pydantic.Field(default=0.15, ge=0)
    dropout: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """Probability of dropping an activation after each pooling."""
    weight_init: WeightInit = "paper"


class VAEConfig(Section):
    """What all variational autoencoders share."""

    activation: ClassVar[str] = "elu"
    likelihood: Literal["bernoulli", "logistic"] = "bernoulli"
    """Bernoulli for binary pixels, redrawn for every batch; or the discretised logistic for bytes."""
    posterior: Literal["diagonal", "iaf"] = "iaf"
    """Diagonal Gaussian, or one followed by inverse autoregressive flow."""
    latents: pydantic.PositiveInt = 32
    """Latent units; channels of latents in every layer of the residual network."""
    flow_steps: pydantic.PositiveInt = 2
    """IAF steps; the order of the latents is reversed from one to the next."""
    flow_width: pydantic.PositiveInt = 320
    """Hidden units (channels) of an IAF step's masked network."""
    free_bits: float = pydantic.Field(default=0.0, ge=0)
    """Nats per latent (or channel of latents) that cost nothing in training; 0 is off."""
    kl_warmup_steps: pydantic.NonNegativeInt = 0
    """Steps over which the weight of the KL term rises linearly to 1; initialising by data is one."""
    weight_init: WeightInit = "paper"


class MLPVAEConfig(VAEConfig):
    """A small VAE for quick sweeps; ``widths`` are the encoder's hidden layers, mirrored in the decoder."""

    name: Literal["mlp_vae"] = "mlp_vae"
    widths: SomeWidths = (128,)
    posterior: Literal["diagonal", "iaf"] = "diagonal"
    latents: pydantic.PositiveInt = 8
    flow_width: pydantic.PositiveInt = 64
    weight_init: WeightInit = "he"


class ConvVAEConfig(VAEConfig):
    """The network of section 5.2 for MNIST: residual blocks, and a layer of ``hidden`` units."""

    name: Literal["conv_vae"] = "conv_vae"
    channels: SomeWidths = (16, 32, 32)
    """Channels of each pair of blocks; all pairs but the last halve the image."""
    hidden: pydantic.PositiveInt = 450


class ResNetVAEConfig(VAEConfig):
    """The network of section 5.2 for CIFAR-10: ``depth`` stochastic layers, bidirectional inference."""

    name: Literal["resnet_vae"] = "resnet_vae"
    likelihood: Literal["bernoulli", "logistic"] = "logistic"
    channels: pydantic.PositiveInt = 160
    depth: pydantic.PositiveInt = 4
    flow_steps: pydantic.PositiveInt = 1
    flow_width: pydantic.PositiveInt = 160


class TransformerConfig(Section):
    """A small pre-norm transformer: layer normalisation's own ground.

    On digits, ``optim=adam optim.lr=0.003`` with layer normalisation and 30 epochs in batches of 100 leaves a
    validation error of 4%; without norms ``optim.lr=0.01`` is best.
    """

    name: Literal["transformer"] = "transformer"
    activation: ClassVar[str] = "none"  # what most of its layers see is no activation's output
    patch: pydantic.PositiveInt = 2
    """Side of the squares that an image is cut into, in pixels."""
    width: pydantic.PositiveInt = 32
    """Features of a patch; ``heads`` divides it."""
    depth: pydantic.PositiveInt = 2
    """Blocks, each of attention and a perceptron with one hidden layer."""
    heads: pydantic.PositiveInt = 4
    mlp_ratio: pydantic.PositiveInt = 2
    """Hidden units of that perceptron for each feature."""
    weight_init: WeightInit = "glorot"

    @pydantic.model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}: change one of them")
        return self


class PluginModelConfig(Section):
    """A model of the user's own: its name, and the numbers that are given (:func:`wn.plugins.model`)."""

    model_config = pydantic.ConfigDict(extra="allow")

    activation: ClassVar[str] = "none"
    name: Literal["plugin"] = "plugin"
    plugin: str = ""


Model = (
    MLPConfig
    | ConvNetConfig
    | MLPVAEConfig
    | ConvVAEConfig
    | ResNetVAEConfig
    | TransformerConfig
    | PluginModelConfig
)
MODELS = get_args(Model)
