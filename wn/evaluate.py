"""``python -m wn.evaluate RUN [data=NAME] [data.KEY=VALUE] [plugins=FILE]``: a trained model's metrics."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from wn import data, metrics, plugins
from wn.config import DataConfig, UserError, VAEConfig, parse
from wn.config.compose import compose
from wn.config.yaml_files import listed, parse_value
from wn.data import Dataset
from wn.metrics import ELBO, objective_of
from wn.resources import configure_torch
from wn.run import title
from wn.stack import Stack
from wn.stops import tell
from wn.trained import TrainedModel, load
from wn.trainer import DTYPES

SETTABLE = ("name", "root", "download", "train_fraction", "valid_fraction")
"""Of other data than the run's. How images are prepared is the run's own."""


def evaluate(run: TrainedModel, dataset: Dataset | None = None) -> dict[str, float]:
    """Metrics of a model on the validation and test images of its own data, or of another data set.

    On the machine that trained the run they are those of its record, if it was trained alone; members of a
    stack differ in rounding.
    """
    settings, device = run.config.trainer, next(run.model.parameters()).device
    configure_torch(settings, device)
    dataset = dataset or dataset_of(run, run.config.data)
    stack, objective = Stack([run.model]), objective_of(run.config.model)
    found: dict[str, float] = {}
    for part, split in (("valid", dataset.valid), ("test", dataset.test)):
        if len(split.x):
            means = metrics.means(stack, objective, split, run.autocast)
            found |= {f"{part}_{name}": value for name, (value,) in means.items()}
    if objective is ELBO:
        x = dataset.test.x[: settings.iwae_images]
        parts = metrics.iwae_bounds(stack, x, settings.iwae_samples, run.autocast)
        (bound,) = metrics.mean_bounds(torch.cat([*parts], 1))
        found["test_nll"] = -bound
    return found


def dataset_of(run: TrainedModel, config: DataConfig) -> Dataset:
    """Images and labels on the model's device, prepared as the run's own were."""
    device, dtype = next(run.model.parameters()).device, DTYPES[run.config.trainer.precision]
    # A whitened data set of the run's own comes from the cache.
    pipeline = None if config.source == run.config.data.source and config.whiten else run.pipeline
    dataset = data.load(config, device, dtype, isinstance(run.config.model, VAEConfig), pipeline)
    if dataset.classes > (known := run.record.content["model"]["classes"]):
        raise UserError(f"data={config.label}: {dataset.classes} classes, and the model knows {known}")
    return dataset


def with_overrides(config: DataConfig, overrides: Sequence[str], files: Sequence[str]) -> DataConfig:
    """The data configuration changed by ``data=NAME`` and ``data.KEY=VALUE``; ``files`` of plugins.

    Raises:
        UserError: no such setting, or another split of the run's own data, which would hold out images that
            the run was trained on.
    """
    tree, code = config.model_dump(), {"plugins": list(files)} if files else {}
    for text in sorted(overrides, key=lambda text: not text.startswith("data=")):  # would replace a root
        key, given, value = text.partition("=")
        if key == "data" and given:
            tree |= compose({"data": value, **code}).data.model_dump(include={"name", "root", "plugin"})
        elif key.startswith("data.") and key[5:] in SETTABLE and given:
            tree[key[5:]] = parse_value(text)
        else:
            raise UserError(f"{text}: give data=NAME, or data.KEY=VALUE with one of {', '.join(SETTABLE)}")
    made = parse({"data": tree, **code}).data
    if made.source == config.source:
        for key in ("train_fraction", "valid_fraction"):
            if getattr(made, key) != (own := getattr(config, key)):
                raise UserError(
                    f"data.{key}: of the run's own data it stays {own:g}; "
                    "another split would hold out images that it was trained on"
                )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.evaluate", description="Evaluate a trained model.")
    parser.add_argument("run", help="a run's folder, or its run_id")
    words = "other data: data=NAME, data.KEY=VALUE; code that it needs: plugins=FILE"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=words)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args(arguments)
    try:
        named = [word for word in options.overrides if word.startswith("plugins=")]
        overrides = [word for word in options.overrides if word not in named]
        files = [file for word in named for file in listed(parse_value(word))]
        run = load(options.run, plugins=files, device=options.device, runs_dir=options.runs_dir)
        plugins.load(files)  # which may register other data than the run's
        config = with_overrides(run.config.data, overrides, files)
        found = evaluate(run, dataset_of(run, config))
    except (UserError, OSError, KeyboardInterrupt) as end:
        return tell(end)
    print(f"{run.record.folder}: {title([run.config])}, on {config.label}")
    final = run.record.content["final"]
    same = config.source == run.config.data.source
    for name, value in found.items():
        print(f"{name} {value!r}" + (f" (record: {final[name]!r})" if same and name in final else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
