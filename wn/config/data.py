"""What is trained on."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from wn.config.models import Section


class DataConfig(Section):
    """A data set, how much of it is trained on, and how it is scaled."""

    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "plugin"] = "digits"
    plugin: str | None = None
    """With name=plugin: a data set of the user's own (wn/plugins.py)."""
    root: str | None = None
    """Folder with the files; null is data/."""
    download: bool = True
    train_fraction: float = pydantic.Field(default=1.0, gt=0, le=1)
    """Share of the training images that is used at all, stratified by label: for small experiments."""
    valid_fraction: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Share of these held out, stratified by label, to choose a learning rate on."""
    whiten: bool = False
    """ZCA whitening as in the authors' code (wn/data/whitening.py) instead of one mean and one scale."""
    binarize: bool = False
    """Static binarisation: each pixel drawn once, with its grey level as probability, for all runs."""
    label_noise: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of the training labels that is drawn anew, evenly over the classes, the same for all runs."""

    @property
    def label(self) -> str:
        return self.plugin or self.name

    @property
    def source(self) -> tuple[str, str | None]:
        """The data set, whatever is taken of it and wherever it lies."""
        return self.name, self.plugin

    @pydantic.model_validator(mode="after")
    def _plugin_has_a_name(self) -> Self:
        if (self.name == "plugin") != (self.plugin is not None):
            raise ValueError(
                "name=plugin goes with the name of a data set that a file registers, as data=my_data"
            )
        return self
