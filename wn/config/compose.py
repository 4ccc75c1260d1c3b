"""Presets and dotted values to a configuration, without Hydra: a learning rate stays the float that it is.

``configs/train.yaml`` says which preset of each group is the default; ``configs/<group>/<name>.yaml`` says
what differs from the defaults of :mod:`wn.config`. A test compares the result with Hydra's own composition.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from wn.config import Config, UserError, nearest, parse, places
from wn.config.yaml_files import read_yaml

CONFIGS = places.ROOT / "configs"

OWN: dict[str, dict[str, str]] = {"norm": {}, "model": {"name": "plugin"}, "data": {"name": "plugin"}}
"""What a choice of the user's own code says in each group, beside its name (wn/plugins.py)."""

Value = str | int | float | bool | None


def compose(settings: Mapping[str, Any]) -> Config:
    """The configuration with a preset's name for each group, and a value for each dotted field, in settings.

    Raises:
        UserError: no such preset, key or value.

    >>> compose({"norm": "batch_norm", "optim.lr": 0.5}).norm.statistics
    'batch'
    """
    defaults, tree = _train()
    groups = {**defaults, **{key: settings[key] for key in defaults if key in settings}}
    named = bool(settings.get("plugins"))
    tree = {**tree, **{group: copy.deepcopy(_preset(group, str(n), named)) for group, n in groups.items()}}
    for key, value in settings.items():
        if key not in groups:
            set_value(tree, key, value)
    return parse(tree)


def set_value(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {section} is a value and has no keys")
    tree[last] = value


@functools.cache
def _preset(group: str, name: str, plugins: bool = False) -> dict[str, Any]:
    """What a preset says, its own defaults list followed within the group.

    Where ``plugins`` are named, another name is taken for what they register; their code is not run for it.
    """
    path = places.find(CONFIGS, f"{group}/{name}.yaml")
    if plugins and group in OWN and not path.is_file():
        return {**OWN[group], "plugin": name}
    if not path.is_file():
        known = sorted(p.stem for folder in places.folders(CONFIGS) for p in folder.glob(f"{group}/*.yaml"))
        raise UserError(f"{group}={name}: no such preset{nearest(name, known)}")
    shown = f"configs/{group}/{name}.yaml"
    own = read_yaml(path, shown)
    bases = own.pop("defaults", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) and "/" not in base for base in bases):
        raise UserError(f"{shown}: defaults should be a list of other presets of {group}")
    tree: dict[str, Any] = {}
    for base in bases if "_self_" in bases else [*bases, "_self_"]:
        if base == "_self_":
            tree |= own
        elif not base.startswith("_"):  # a node of the schema's (wn.train)
            tree |= _preset(group, base)
    return tree


def check_presets(choices: Mapping[str, Any]) -> None:
    """Read the presets that Hydra composed, of its own reading of YAML, as :func:`compose` reads them.

    Raises:
        UserError: one of them has a value that may mean something else to Hydra.
    """
    for group in _train()[0]:
        if places.find(CONFIGS, f"{group}/{choices.get(group)}.yaml").is_file():
            _preset(group, choices[group])


@functools.cache
def _train() -> tuple[dict[str, str], dict[str, Any]]:
    """The default preset of every group, and the values of ``train.yaml`` itself."""
    tree = read_yaml(CONFIGS / "train.yaml", "configs/train.yaml")
    chosen = [item for item in tree.pop("defaults") if isinstance(item, dict)]
    groups = {key: value for item in chosen for key, value in item.items() if " " not in key}
    del tree["hydra"]
    return groups, tree
