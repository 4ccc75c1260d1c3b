"""The residual VAE of section 5.2 for CIFAR-10: several stochastic layers, inferred in both directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import ResNetVAE
from wn.models.convnet import ChannelsLast
from wn.models.draw import drawn
from wn.models.flow import Posterior
from wn.models.likelihood import log_standard_normal, wide
from wn.models.vae import Autoencoder
from wn.noise import Sampler


class StochasticLayer(nn.Module):
    """One of the layers: a residual unit on the way up, and one on the way down whose hidden maps are in part
    drawn (companion paper, figure 3 and appendix C).

    Args:
        config: of the model.
        top: whether the way up ends here.
    """

    def __init__(self, config: ResNetVAE, top: bool) -> None:
        super().__init__()
        maps, latents = config.maps, config.latents

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return drawn(nn.Conv2d(inputs, outputs, 3, padding=1), config.draw)

        self.up_sizes = [latents, latents, maps, maps]  # q's mean and log variance, context, hidden
        self.down_sizes = [latents] * 4 + [maps, maps]  # p's, then q's mean and log variance, context, hidden
        if top:
            del self.up_sizes[-1]
        else:
            self.up_second = conv(maps, maps)
        self.up_first = conv(maps, sum(self.up_sizes))
        self.down_first, self.down_second = conv(maps, sum(self.down_sizes)), conv(maps + latents, maps)
        self.posterior = Posterior(config, context=maps, maps=True)
        self.prior = Sampler()

    def up(self, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The next activations on the way up, and what the posterior will need of this layer."""
        posterior = list(self.up_first(F.elu(h)).split(self.up_sizes, 1))
        if len(posterior) == 4:
            h = h + self.up_second(F.elu(posterior.pop()))
        return h, posterior

    def down(self, h: Tensor, posterior: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """The next activations on the way down, and ``log q - log p`` added up within each map of latents.

        Args:
            h: ``[batch, maps, height, width]``.
            posterior: of :meth:`up`; without it z is drawn from the prior, and the difference is zero.
        """
        p_mean, p_log_variance, *q, context, hidden = self.down_first(F.elu(h)).split(self.down_sizes, 1)
        p_mean, p_log_variance = wide(p_mean), wide(p_log_variance)
        if posterior is None:
            divergence = torch.zeros_like(p_mean[:, :, 0, 0])
            z = p_mean + torch.exp(0.5 * p_log_variance) * self.prior.normal(p_mean.shape).to(p_mean.dtype)
        else:
            mean, log_variance, up_context = posterior
            z, log_q = self.posterior(mean + q[0], log_variance + q[1], context + up_context)
            log_p = (
                log_standard_normal((z - p_mean) * torch.exp(-0.5 * p_log_variance)) - 0.5 * p_log_variance
            )
            divergence = (log_q - log_p).flatten(2).sum(2)
        return h + self.down_second(F.elu(torch.cat([z.to(hidden.dtype), hidden], 1))), divergence


class Ladder(Autoencoder):
    """``config.depth`` stochastic layers at half the image's size. The groups are the maps of latents.

    Args:
        config: of the model.
        channels: of an image.
        size: height and width of an image, even.
    """

    def __init__(self, config: ResNetVAE, channels: int, size: tuple[int, int]) -> None:
        super().__init__(config, channels)
        self.size = (size[0] // 2, size[1] // 2)
        self.channels_last = ChannelsLast()
        self.encoder = drawn(nn.Conv2d(channels, config.maps, 3, stride=2, padding=1), config.draw)
        top = config.depth - 1
        self.layers = nn.ModuleList(StochasticLayer(config, i == top) for i in range(config.depth))
        self.top = nn.Parameter(torch.zeros(config.maps, 1, 1))
        self.decoder = drawn(
            nn.ConvTranspose2d(config.maps, channels, 3, stride=2, padding=1, output_padding=1), config.draw
        )

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Autoencoder.infer`."""
        h = self.encoder(self.channels_last(x) - 0.5)
        posteriors: list[list[Tensor]] = []
        for layer in self._layers():
            h, posterior = layer.up(h)
            posteriors.append(posterior)
        h, divergences = self._top(len(x)), []
        for layer, posterior in zip(self._layers()[::-1], posteriors[::-1], strict=True):
            h, divergence = layer.down(h, posterior)
            divergences.append(divergence)
        return self.decoder(F.elu(h)), torch.cat(divergences, 1)

    def imagine(self, count: int) -> Tensor:
        """See :meth:`Autoencoder.imagine`."""
        h = self._top(count)
        for layer in self._layers()[::-1]:
            h, _ = layer.down(h, None)
        output: Tensor = self.decoder(F.elu(h))
        return output

    def _layers(self) -> list[StochasticLayer]:
        """From the image on upwards."""
        return list(self.layers)  # type: ignore[arg-type]

    def _top(self, count: int) -> Tensor:
        """The activations that the way down begins with: learned, the same for all."""
        top: Tensor = self.channels_last(self.top.expand(count, -1, *self.size))
        return top
