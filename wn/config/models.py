"""The architectures that there are, and what can be chosen of each."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Probability = pydantic.Field(default=0.0, ge=0, lt=1)

Draw = Literal["he", "paper", "glorot"]
"""Law of the initial weights: He's normal(0, sqrt(2/fan_in)), the paper's normal(0, 0.05), or Glorot's
uniform of variance 2/(fan_in + fan_out), which the authors' code leaves the plain weights at."""

Widths = tuple[pydantic.PositiveInt, ...]
SomeWidths = Annotated[Widths, pydantic.Field(min_length=1)]


class MLP(Section):
    """A multilayer perceptron; ``widths`` are its hidden layers."""

    name: Literal["mlp"] = "mlp"
    widths: Widths = (128, 128)
    activation: Literal["relu", "leaky_relu", "elu", "tanh"] = "relu"
    noise: float = pydantic.Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian noise on the input."""
    dropout: float = Probability
    """Probability of dropping a hidden activation."""
    draw: Draw = "he"


class ConvNet(Section):
    """The network of section 5.1: three blocks of convolutions, the last of which ends 1x1."""

    name: Literal["convnet"] = "convnet"
    width: pydantic.PositiveInt = 96
    """Channels of the first block; the others have twice as many."""
    depth: pydantic.PositiveInt = 3
    """Convolutions in a block."""
    noise: float = pydantic.Field(default=0.15, ge=0)
    """Standard deviation of the Gaussian noise on the input."""
    dropout: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """Probability of dropping an activation after each pooling."""
    draw: Draw = "paper"


class VAE(Section):
    """What all variational autoencoders have."""

    likelihood: Literal["bernoulli", "logistic"] = "bernoulli"
    """Of black and white pixels, drawn anew at each look, or of bytes (the discretised logistic)."""
    posterior: Literal["diagonal", "iaf"] = "iaf"
    """A Gaussian, or one that inverse autoregressive flow has transformed."""
    latents: pydantic.PositiveInt = 32
    """Latent numbers; of the residual network, maps of them in every layer."""
    flow_steps: pydantic.PositiveInt = 2
    """Transformations of the flow, each in the other's reverse order."""
    flow_width: pydantic.PositiveInt = 320
    """Hidden units, or maps, of a transformation."""
    free_bits: float = pydantic.Field(default=0.0, ge=0)
    """Nats of every latent (or map of them) that cost nothing in training; 0 is off."""
    warm_up_steps: pydantic.NonNegativeInt = 0
    """Steps over which the divergence comes to count in full; 0 is off."""
    draw: Draw = "paper"


class MLPVAE(VAE):
    """A small one for quick sweeps; ``widths`` are the encoder's hidden layers, the decoder mirrors them."""

    name: Literal["mlp_vae"] = "mlp_vae"
    widths: SomeWidths = (128,)
    posterior: Literal["diagonal", "iaf"] = "diagonal"
    latents: pydantic.PositiveInt = 8
    flow_width: pydantic.PositiveInt = 64
    draw: Draw = "he"


class ConvVAE(VAE):
    """The network of section 5.2 for MNIST: residual blocks, and a layer of ``hidden`` units."""

    name: Literal["conv_vae"] = "conv_vae"
    maps: SomeWidths = (16, 32, 32)
    """Maps of each pair of blocks; all pairs but the last halve the image."""
    hidden: pydantic.PositiveInt = 450


class ResNetVAE(VAE):
    """The network of section 5.2 for CIFAR-10: ``depth`` stochastic layers, inferred in both directions."""

    name: Literal["resnet_vae"] = "resnet_vae"
    likelihood: Literal["bernoulli", "logistic"] = "logistic"
    maps: pydantic.PositiveInt = 160
    depth: pydantic.PositiveInt = 4
    flow_steps: pydantic.PositiveInt = 1
    flow_width: pydantic.PositiveInt = 160


Model = MLP | ConvNet | MLPVAE | ConvVAE | ResNetVAE
"""The architectures; ``name`` tells which one."""
