"""Variational autoencoders with one layer of latents: the convolutional one of section 5.2, a small MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import ConvVAEConfig, MLPVAEConfig, VAEConfig, WeightInit
from wn.models.convnet import ChannelsLast
from wn.models.flow import Posterior
from wn.models.init import init_weights_, output_layer
from wn.models.likelihood import Bernoulli, DiscretizedLogistic, log_standard_normal
from wn.models.noise import Sampler


class VAEBase(nn.Module):
    """The ELBO estimated with one sample of the latents, which :meth:`infer` and :meth:`decode_prior` define.

    Images are grey levels from 0 to 1, ``[batch, channels, height, width]``.
    """

    steps: Tensor

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.likelihood = Bernoulli() if config.likelihood == "bernoulli" else DiscretizedLogistic(channels)
        self.pixels = Sampler()
        if config.kl_warmup_steps:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def infer(self, x: Tensor, samples: int = 1) -> tuple[Tensor, Tensor]:
        """Decoder's output, and ``log q(z|x) - log p(z)`` ``[batch * samples, groups]``.

        There are ``samples`` of z an image, one after another; the encoder sees each image once. Free bits
        are per group.
        """
        raise NotImplementedError

    def decode_prior(self, count: int) -> Tensor:
        """The decoder's output for ``count`` samples of the prior."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, reconstruction ``-log p(x|z)`` and KL term ``log q(z|x) - log p(z)``, in nats ``[batch]``.

        In evaluation the loss is the sum of the two, minus the ELBO; in training free bits and warm-up change
        the KL term (companion paper, C.8).
        """
        x = self.observe(x)
        output, divergence = self.infer(x)
        reconstruction, kl = -self.likelihood.log_prob(output, x), divergence.sum(1)
        return reconstruction + self._kl_loss(divergence, kl), reconstruction, kl

    def observe(self, x: Tensor) -> Tensor:
        """x, dynamically binarised under a Bernoulli likelihood."""
        return (self.pixels.draw(x.shape) < x).to(x.dtype) if self.likelihood.binary else x

    def _kl_loss(self, divergence: Tensor, kl: Tensor) -> Tensor:
        if not self.training:
            return kl
        if self.config.free_bits:
            kl = divergence.mean(0).clamp_min(self.config.free_bits).sum().expand_as(kl)
        if self.config.kl_warmup_steps:
            self.steps.add_(1)
            kl = kl * (self.steps / self.config.kl_warmup_steps).clamp_max(1)
        return kl

    def iwae_bound(self, x: Tensor, samples: int) -> Tensor:
        """IWAE bound: log mean of ``p(x, z) / q(z|x)`` over ``samples`` of z, per image ``[batch]``."""
        x = self.observe(x)
        output, divergence = self.infer(x, samples)
        log_weights = self.likelihood.log_prob(output, repeated(x, samples)) - divergence.sum(1)
        return torch.logsumexp(log_weights.view(-1, samples), 1) - math.log(samples)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) with z sampled from q(z|x): grey levels of the shape of ``x``."""
        return self.likelihood.mean(self.infer(self.observe(x))[0])

    def generate(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) with z sampled from the prior, one for each image in ``x``."""
        return self.likelihood.mean(self.decode_prior(len(x)))


def repeated(t: Tensor, times: int) -> Tensor:
    """Each image's row so many times, one after another."""
    return t if times == 1 else t.repeat_interleave(times, 0)


class GaussianVAE(VAEBase):
    """One layer of latents with a standard normal prior; each latent is a group.

    ``encoder`` maps images to ``[batch, features]``, ``decoder`` latents to the likelihood's parameters.
    """

    def __init__(
        self, config: VAEConfig, channels: int, encoder: nn.Module, features: int, decoder: nn.Module
    ) -> None:
        super().__init__(config, channels)
        self.encoder, self.decoder = encoder, decoder
        params = init_weights_(nn.Linear(features, 2 * config.latents), config.weight_init)
        self.posterior_params = output_layer(params)
        self.posterior = Posterior(config, context=features)
        self.prior = Sampler()

    def infer(self, x: Tensor, samples: int = 1) -> tuple[Tensor, Tensor]:
        features = self.encoder(x)
        mean, log_variance = self.posterior_params(features).chunk(2, 1)
        z, log_q = self.posterior(*(repeated(t, samples) for t in (mean, log_variance, features)))
        return self.decoder(z), log_q - log_standard_normal(z)

    def decode_prior(self, count: int) -> Tensor:
        weight = next(self.decoder.parameters())
        z = self.prior.normal(torch.Size((count, self.config.latents))).to(weight.dtype)
        output: Tensor = self.decoder(z)
        return output


def build_mlp_vae(config: MLPVAEConfig, shape: tuple[int, ...]) -> GaussianVAE:

    def layers(sizes: Sequence[int]) -> list[nn.Module]:
        pairs = itertools.pairwise(sizes)
        return [m for a, b in pairs for m in (init_weights_(nn.Linear(a, b), config.weight_init), nn.ELU())]

    pixels = math.prod(shape)
    encoder = nn.Sequential(nn.Flatten(), *layers([pixels, *config.widths]))
    hidden = layers([config.latents, *reversed(config.widths)])
    last = output_layer(init_weights_(nn.Linear(config.widths[0], pixels), config.weight_init))
    decoder = nn.Sequential(*hidden, last, nn.Unflatten(1, shape))
    return GaussianVAE(config, shape[0], encoder, config.widths[-1], decoder)


class ResidualBlock(nn.Module):
    """``shortcut(x) + conv(elu(conv(elu(x))))``, 3x3; where a shape changes, the shortcut is a convolution.

    A ``scale`` of 2 halves the image by stride or, ``up``, doubles it by transposed convolution.
    """

    def __init__(self, inputs: int, outputs: int, scale: int, up: bool, scheme: WeightInit) -> None:
        super().__init__()
        hidden = max(inputs, outputs)
        self.first = _conv(inputs, hidden, scale, up, scheme)
        self.second = _conv(hidden, outputs, 1, False, scheme)
        changes = scale > 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, scale, up, scheme) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.second(F.elu(self.first(F.elu(x))))
        return y


def _conv(inputs: int, outputs: int, scale: int, up: bool, scheme: WeightInit) -> nn.Module:
    if up and scale > 1:
        transposed = nn.ConvTranspose2d(inputs, outputs, 3, scale, padding=1, output_padding=scale - 1)
        return init_weights_(transposed, scheme)
    return init_weights_(nn.Conv2d(inputs, outputs, 3, scale, padding=1), scheme)


def build_conv_vae(config: ConvVAEConfig, shape: tuple[int, ...]) -> GaussianVAE:
    """The network of section 5.2 for MNIST.

    Two residual blocks for each of ``config.channels``, the second of which halves the image except in the
    last pair; a linear layer of ``config.hidden`` units. The decoder is the same backwards.
    """
    channels, height, width = shape
    last = len(config.channels) - 1
    plan: list[tuple[int, int, int]] = []  # inputs, outputs, scale
    for i, (a, b) in enumerate(itertools.pairwise((channels, *config.channels))):
        plan += [(a, b, 1), (b, b, 1 if i == last else 2)]
    small = (config.channels[-1], height // 2**last, width // 2**last)
    features = math.prod(small)
    encoder = nn.Sequential(
        ChannelsLast(),
        *(ResidualBlock(a, b, scale, False, config.weight_init) for a, b, scale in plan),
        nn.ELU(),
        nn.Flatten(),
        init_weights_(nn.Linear(features, config.hidden), config.weight_init),
        nn.ELU(),
    )
    decoder = nn.Sequential(
        init_weights_(nn.Linear(config.latents, config.hidden), config.weight_init),
        nn.ELU(),
        init_weights_(nn.Linear(config.hidden, features), config.weight_init),
        nn.Unflatten(1, small),
        ChannelsLast(),
        *(ResidualBlock(b, a, scale, True, config.weight_init) for a, b, scale in reversed(plan)),
    )
    last_block: ResidualBlock = decoder[-1]  # type: ignore[assignment]
    output_layer(last_block.second)
    output_layer(last_block.shortcut)
    return GaussianVAE(config, channels, encoder, config.hidden, decoder)
