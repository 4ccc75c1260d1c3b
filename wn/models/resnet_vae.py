"""The residual VAE of section 5.2 for CIFAR-10: several stochastic layers, bidirectional inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import ResNetVAEConfig
from wn.models.convnet import ChannelsLast
from wn.models.flow import Posterior
from wn.models.init import init_weights_, output_layer
from wn.models.likelihood import at_least_float32, log_standard_normal
from wn.models.noise import Sampler
from wn.models.vae import VAEBase, repeated


class StochasticLayer(nn.Module):
    """A bottom-up residual unit, and a top-down one some of whose hidden channels are sampled (Kingma et al.,
    2016, figure 3 and appendix C). At the ``top`` the bottom-up pass ends.
    """

    def __init__(self, config: ResNetVAEConfig, top: bool) -> None:
        super().__init__()
        channels, latents = config.channels, config.latents

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return init_weights_(nn.Conv2d(inputs, outputs, 3, padding=1), config.weight_init)

        # Channels of one convolution's parts. Up: q's mean and log variance, context, hidden; down: p's mean
        # and log variance, q's, context, hidden.
        self.up_sizes = [latents] * 2 + [channels] * 2
        self.down_sizes = [latents] * 4 + [channels] * 2
        if top:
            del self.up_sizes[-1]
        else:
            self.up_second = conv(channels, channels)
        self.up_first = conv(channels, sum(self.up_sizes))
        self.down_first = conv(channels, sum(self.down_sizes))
        self.down_second = conv(channels + latents, channels)
        self.posterior = Posterior(config, context=channels, spatial=True)
        self.prior = Sampler()

    def up(self, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The next bottom-up activations, and q's mean, log variance and context from below."""
        posterior = list(self.up_first(F.elu(h)).split(self.up_sizes, 1))
        if len(posterior) == 4:
            h = h + self.up_second(F.elu(posterior.pop()))
        return h, posterior

    def down(self, h: Tensor, posterior: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """The next top-down activations, and ``log q - log p`` ``[batch, latents]``, summed over positions.

        Without a ``posterior`` (of :meth:`up`) z is sampled from the prior, and the difference is zero.
        """
        p_mean, p_log_variance, *q, context, hidden = self.down_first(F.elu(h)).split(self.down_sizes, 1)
        p_mean, p_log_variance = at_least_float32(p_mean), at_least_float32(p_log_variance)
        if posterior is None:
            divergence = torch.zeros_like(p_mean[:, :, 0, 0])
            z = p_mean + torch.exp(0.5 * p_log_variance) * self.prior.normal(p_mean.shape).to(p_mean.dtype)
        else:
            mean, log_variance, up_context = posterior
            z, log_q = self.posterior(mean + q[0], log_variance + q[1], context + up_context)
            standardized = (z - p_mean) * torch.exp(-0.5 * p_log_variance)
            log_p = log_standard_normal(standardized) - 0.5 * p_log_variance
            divergence = (log_q - log_p).flatten(2).sum(2)
        return h + self.down_second(F.elu(torch.cat([z.to(hidden.dtype), hidden], 1))), divergence


class ResNetVAE(VAEBase):
    """``config.depth`` stochastic layers at half the image's size; each channel of latents is a group."""

    def __init__(self, config: ResNetVAEConfig, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        super().__init__(config, channels)
        self.size = (height // 2, width // 2)
        self.channels_last = ChannelsLast()
        encoder = nn.Conv2d(channels, config.channels, 3, stride=2, padding=1)
        self.encoder = init_weights_(encoder, config.weight_init)
        top = config.depth - 1
        self.layers = nn.ModuleList(StochasticLayer(config, i == top) for i in range(config.depth))
        self.top = nn.Parameter(torch.zeros(config.channels, 1, 1))
        decoder = nn.ConvTranspose2d(config.channels, channels, 3, stride=2, padding=1, output_padding=1)
        self.decoder = output_layer(init_weights_(decoder, config.weight_init))

    def infer(self, x: Tensor, samples: int = 1) -> tuple[Tensor, Tensor]:
        h = self.encoder(self.channels_last(x) - 0.5)
        posteriors: list[list[Tensor]] = []
        for layer in self._layers():
            h, posterior = layer.up(h)
            posteriors.append([repeated(t, samples) for t in posterior])
        h, divergences = self._top(len(x) * samples), []
        for layer, posterior in zip(self._layers()[::-1], posteriors[::-1], strict=True):
            h, divergence = layer.down(h, posterior)
            divergences.append(divergence)
        return self.decoder(F.elu(h)), torch.cat(divergences, 1)

    def decode_prior(self, count: int) -> Tensor:
        h = self._top(count)
        for layer in self._layers()[::-1]:
            h, _ = layer.down(h, None)
        output: Tensor = self.decoder(F.elu(h))
        return output

    def _layers(self) -> list[StochasticLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _top(self, count: int) -> Tensor:
        """Learned initial activation of the top-down pass."""
        top: Tensor = self.channels_last(self.top.expand(count, -1, *self.size))
        return top
