"""The convolutional network of section 5.1, as the authors' code has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wn.config import ConvNetConfig, UserError
from wn.models.init import init_weights_, output_layer
from wn.models.noise import Dropout, GaussianNoise

SLOPE = 0.1  # of the leaky ReLU after every layer but the logits, for negative inputs
SMALLEST = 12  # side of an image: two poolings leave 3x3 positions for the valid convolution


class ChannelsLast(nn.Module):
    """Moves images to the channels-last memory format, the fastest for convolutions; later layers keep it."""

    def forward(self, x: Tensor) -> Tensor:
        # Not x.contiguous(memory_format=...), for which vmap has no rule. A copy in any case: images of one
        # channel count as contiguous in both formats, and convolutions take them for the other.
        return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def build_convnet(config: ConvNetConfig, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``[batch, channels, height, width]`` to logits ``[batch, classes]``.

    Noise; two blocks of 3x3 convolutions, each followed by 2x2 max-pooling and dropout; a block of one
    valid 3x3 convolution and 1x1 convolutions; global average pooling; a linear layer. A block has
    ``config.depth`` convolutions, of ``config.width`` channels in the first and twice as many later.
    """
    network = nn.Sequential()
    if config.noise:
        network.add_module("noise", GaussianNoise(config.noise))
    network.add_module("channels_last", ChannelsLast())
    kernels = [(3, 1)] * 2 * config.depth + [(3, 0)] + [(1, 0)] * (config.depth - 1)
    inputs = shape[0]
    for i, (size, padding) in enumerate(kernels, start=1):
        block, index = divmod(i - 1, config.depth)
        width = config.width if block == 0 else 2 * config.width
        conv = nn.Conv2d(inputs, width, size, padding=padding)
        network.add_module(f"conv{i}", init_weights_(conv, config.weight_init))
        network.add_module(f"activation{i}", nn.LeakyReLU(SLOPE))
        if block < 2 and index == config.depth - 1:
            network.add_module(f"pool{block + 1}", nn.MaxPool2d(2))
            if config.dropout:
                network.add_module(f"dropout{block + 1}", Dropout(config.dropout))
        inputs = width
    network.add_module("mean", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    logits = init_weights_(nn.Linear(inputs, classes), config.weight_init)
    network.add_module("logits", output_layer(logits))
    return network


def check_shape(shape: tuple[int, ...]) -> None:
    _, height, width = shape
    if min(height, width) < SMALLEST:
        raise UserError(
            f"model=convnet: needs images of {SMALLEST}x{SMALLEST} or more, and these have {height}x{width}; "
            "take other data, or model=mlp"
        )
