"""What is minimised and what is measured."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def classification(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and misclassification, of each example.

    Args:
        logits: ``[..., classes]``, of any floating type; the loss is computed in float32 at least.
        labels: ``[...]``, int64.

    Returns:
        loss and error, both ``[...]``; an error is 0 or 1.
    """
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    loss = F.cross_entropy(wide.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return loss, (wide.argmax(-1) != labels).to(loss.dtype)
