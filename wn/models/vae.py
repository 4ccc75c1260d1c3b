"""Variational autoencoders of one layer of latents: the convolutional one of section 5.2, a small MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import MLPVAE, VAE, ConvVAE, Draw
from wn.models.convnet import ChannelsLast
from wn.models.draw import drawn
from wn.models.flow import Posterior
from wn.models.likelihood import Bernoulli, DiscretizedLogistic, log_standard_normal
from wn.noise import Sampler


class Autoencoder(nn.Module):
    """The evidence lower bound of a latent variable model, estimated with one draw of the latents.

    A subclass says what the latents are: :meth:`infer` and :meth:`imagine`.

    Args:
        config: ``likelihood``, ``free_bits``, ``warm_up_steps``.
        channels: of an image.
    """

    steps: Tensor

    def __init__(self, config: VAE, channels: int) -> None:
        super().__init__()
        self.config = config
        self.likelihood = Bernoulli() if config.likelihood == "bernoulli" else DiscretizedLogistic(channels)
        self.pixels = Sampler()
        if config.warm_up_steps:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From images to the decoder's output, and ``log q(z|x) - log p(z)`` of the latents drawn on the way,
        added up within each group ``[batch, groups]``."""
        raise NotImplementedError

    def imagine(self, count: int) -> Tensor:
        """The decoder's output for so many draws from the prior."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, and minus the bound's two parts, of each image, in nats ``[batch]``.

        The parts are ``-log p(x|z)`` and ``log q(z|x) - log p(z)``. In evaluation the first is their sum; in
        training the latter counts in it as warm-up and free bits say (companion paper, C.8).

        Args:
            x: grey levels from 0 to 1, ``[batch, channels, height, width]``.
        """
        x = self.observe(x)
        output, divergence = self.infer(x)
        reconstruction, kl = -self.likelihood.log_prob(output, x), divergence.sum(1)
        return reconstruction + self._cost(divergence, kl), reconstruction, kl

    def observe(self, x: Tensor) -> Tensor:
        """What the model is shown of grey levels: of a Bernoulli likelihood a draw of black and white."""
        return (self.pixels.draw(x.shape) < x).to(x.dtype) if self.likelihood.binary else x

    def _cost(self, divergence: Tensor, kl: Tensor) -> Tensor:
        """What the divergence costs: in evaluation itself."""
        if not self.training:
            return kl
        if self.config.free_bits:
            kl = divergence.mean(0).clamp_min(self.config.free_bits).sum().expand_as(kl)
        if self.config.warm_up_steps:
            self.steps.add_(1)
            kl = kl * (self.steps / self.config.warm_up_steps).clamp_max(1)
        return kl

    def importance_bound(self, x: Tensor, samples: int) -> Tensor:
        """The log of the mean ``p(x, z) / q(z|x)`` over so many draws of z, of each image ``[batch]``."""
        x = self.observe(x).repeat_interleave(samples, 0)
        output, divergence = self.infer(x)
        log_weights = self.likelihood.log_prob(output, x) - divergence.sum(1)
        return torch.logsumexp(log_weights.view(-1, samples), 1) - math.log(samples)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) with z drawn from q(z|x): grey levels of the shape of ``x``."""
        return self.likelihood.mean(self.infer(self.observe(x))[0])

    def generate(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) with z drawn from the prior, as many as there are images in ``x``."""
        return self.likelihood.mean(self.imagine(len(x)))


class OneLayer(Autoencoder):
    """Latents of one layer, with a standard normal prior. The groups are the latents.

    Args:
        config: of the model.
        channels: of an image.
        encoder: images to ``features`` activations.
        features: how many.
        decoder: latents to the output.
    """

    def __init__(
        self, config: VAE, channels: int, encoder: nn.Module, features: int, decoder: nn.Module
    ) -> None:
        super().__init__(config, channels)
        self.encoder, self.decoder = encoder, decoder
        self.moments = drawn(nn.Linear(features, 2 * config.latents), config.draw)
        self.posterior = Posterior(config, context=features)
        self.prior = Sampler()

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Autoencoder.infer`."""
        features = self.encoder(x)
        mean, log_variance = self.moments(features).chunk(2, 1)
        z, log_q = self.posterior(mean, log_variance, features)
        return self.decoder(z), log_q - log_standard_normal(z)

    def imagine(self, count: int) -> Tensor:
        """See :meth:`Autoencoder.imagine`."""
        weight = next(self.decoder.parameters())
        z = self.prior.normal(torch.Size((count, self.config.latents))).to(weight.dtype)
        output: Tensor = self.decoder(z)
        return output


def build_mlp_vae(config: MLPVAE, shape: tuple[int, int, int]) -> OneLayer:
    """An encoder of hidden layers ``config.widths``, and a decoder that mirrors them."""

    def layers(sizes: Sequence[int]) -> list[nn.Module]:
        pairs = itertools.pairwise(sizes)
        return [m for a, b in pairs for m in (drawn(nn.Linear(a, b), config.draw), nn.ELU())]

    pixels = math.prod(shape)
    encoder = nn.Sequential(nn.Flatten(), *layers([pixels, *config.widths]))
    hidden = layers([config.latents, *reversed(config.widths)])
    last = drawn(nn.Linear(config.widths[0], pixels), config.draw)
    decoder = nn.Sequential(*hidden, last, nn.Unflatten(1, shape))
    return OneLayer(config, shape[0], encoder, config.widths[-1], decoder)


class ResidualBlock(nn.Module):
    """``shortcut(x) + conv(elu(conv(elu(x))))``, 3x3; where a shape changes, the shortcut is a convolution.

    Args:
        inputs: maps.
        outputs: maps.
        scale: 1 keeps the image's size, 2 halves it (by stride).
        up: whether 2 doubles it instead (by transposed convolution).
        law: of the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, scale: int, up: bool, law: Draw) -> None:
        super().__init__()
        hidden = max(inputs, outputs)
        self.first = _conv(inputs, hidden, scale, up, law)
        self.second = _conv(hidden, outputs, 1, False, law)
        changes = scale > 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, scale, up, law) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, inputs, height, width]``."""
        y: Tensor = self.shortcut(x) + self.second(F.elu(self.first(F.elu(x))))
        return y


def _conv(inputs: int, outputs: int, scale: int, up: bool, law: Draw) -> nn.Module:
    """A 3x3 convolution, strided or transposed."""
    if up and scale > 1:
        return drawn(nn.ConvTranspose2d(inputs, outputs, 3, scale, padding=1, output_padding=scale - 1), law)
    return drawn(nn.Conv2d(inputs, outputs, 3, scale, padding=1), law)


def build_conv_vae(config: ConvVAE, shape: tuple[int, int, int]) -> OneLayer:
    """The network of section 5.2 for MNIST.

    Two residual blocks for each of ``config.maps``, the second of which halves the image except in the last
    pair; a linear layer of ``config.hidden`` units. The decoder is the same backwards.
    """
    channels, height, width = shape
    last = len(config.maps) - 1
    plan: list[tuple[int, int, int]] = []  # inputs, outputs, scale
    for i, (before, maps) in enumerate(zip((channels, *config.maps), config.maps, strict=False)):
        plan += [(before, maps, 1), (maps, maps, 1 if i == last else 2)]
    small = (config.maps[-1], height // 2**last, width // 2**last)
    features = math.prod(small)
    encoder = nn.Sequential(
        ChannelsLast(),
        *(ResidualBlock(a, b, scale, False, config.draw) for a, b, scale in plan),
        nn.ELU(),
        nn.Flatten(),
        drawn(nn.Linear(features, config.hidden), config.draw),
        nn.ELU(),
    )
    decoder = nn.Sequential(
        drawn(nn.Linear(config.latents, config.hidden), config.draw),
        nn.ELU(),
        drawn(nn.Linear(config.hidden, features), config.draw),
        nn.Unflatten(1, small),
        ChannelsLast(),
        *(ResidualBlock(b, a, scale, True, config.draw) for a, b, scale in reversed(plan)),
    )
    return OneLayer(config, channels, encoder, config.hidden, decoder)
