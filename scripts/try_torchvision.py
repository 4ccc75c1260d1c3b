"""Weight normalisation of torchvision's models: what is normalised in each, and three steps on random labels.

python scripts/try_torchvision.py resnet18 swin_t    # or all five, some minutes on two cores
"""

import sys
import warnings
from pathlib import Path

import torch
import torchvision
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wn import data_dependent_init, normalize, summary

MODELS = ("resnet18", "vit_b_16", "swin_t", "convnext_tiny", "densenet121")


def losses(name: str, norm: str = "weight_norm_init", images: int = 8, steps: int = 3) -> list[float]:
    """The losses of a model from torchvision, randomly initialised, before each step and after the last."""
    torch.manual_seed(0)
    x, labels = torch.randn(images, 3, 64, 64), torch.randint(0, 1000, (images,))
    options = {"image_size": 64} if name.startswith("vit") else {}
    model = normalize(torchvision.models.get_model(name, weights=None, **options), norm)
    print(f"\n{name}\n{summary(model)}")
    data_dependent_init(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5)
    found = []
    for _ in range(steps + 1):
        loss = cross_entropy(model(x), labels)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"warning: {message}")
    for model in sys.argv[1:] or MODELS:
        print("loss:", *(f"{loss:.3f}" for loss in losses(model)))
