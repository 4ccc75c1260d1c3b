"""Which layers of a model are normalised, which are not, and why."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from wn.grammar import DEFAULTS
from wn.norm.kinds import KINDS, kind_of
from wn.norm.layer import NormalizedLayer
from wn.presets import label

Names = str | Sequence[str] | None

# Modules whose matrices are no layers of their own.
_HOLDERS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
_READS_WEIGHT = re.compile(
    r"\bself\.([\w.]+)\.weight\b(?!\.(?:dtype|device|shape|size|numel|dim|requires_grad)\b)"
)


def chosen(
    model: nn.Module, wanted: Callable[[nn.Module], bool], only: Names, skip: Names
) -> list[nn.Module]:
    """The wanted modules, each once, whose names ``only`` (None: all) has and ``skip`` has not."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if wanted(module):
            names.setdefault(module, []).append(name)
    everything = [name for known in names.values() for name in known]
    for pattern in (*_patterns(only), *_patterns(skip)):
        if not any(_has(name, [pattern]) for name in everything):
            known = ", ".join(everything[:20]) + ", ..." * (len(everything) > 20)
            raise ValueError(f"no layer is called {pattern!r}; there are {known}")
    return [
        module
        for module, known in names.items()
        if (only is None or any(_has(name, _patterns(only)) for name in known))
        and not any(_has(name, _patterns(skip)) for name in known)
    ]


def _patterns(names: Names) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or []


def _has(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def readers_of_weights(model: nn.Module, layers: Sequence[nn.Module]) -> dict[nn.Module, str]:
    """Those of the layers whose ``weight`` some module reads where it should call the layer; their names.

    Found in the source of its methods, but those that initialise. torch's own modules are known not to.
    """
    found = {}
    for name, parent in model.named_modules():
        for method in methods_of(type(parent)):
            try:
                source = inspect.getsource(method)
            except (OSError, TypeError):  # written in C, or typed into an interpreter
                continue
            for path in _READS_WEIGHT.findall(source):
                if (child := _find(parent, path)) in layers and child is not None:
                    found[child] = f"{name}.{path}".lstrip(".")
    return found


def methods_of(kind: type[nn.Module]) -> Iterator[Callable[..., object]]:
    """The methods of a module's class that may take part in its forward pass."""
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not method.__module__.startswith("torch.nn.") and "init" not in name and "reset" not in name:
            yield method


def _find(parent: nn.Module, path: str) -> nn.Module | None:
    try:
        return parent.get_submodule(path)
    except AttributeError:
        return None


def left_out(model: nn.Module, past: dict[nn.Module, str], only: Names, skip: Names) -> str | None:
    """One line about matrices that were asked for, and are not normalised; None if there are none."""
    told = [Row(name, "", "its module reads .weight itself", 0) for name in past.values()]
    for name, module in model.named_modules():
        if only is None and not _has(name, _patterns(skip)) and (why := _why_not(module)):
            told.append(Row(name or "the model", "", why, 0))
    inner = {r.name for r in told for outer in told if r.name.startswith(f"{outer.name}.")}
    names = [f"{row.name} ({row.note})" for row, _ in _merged([r for r in told if r.name not in inner])]
    return f"not normalised: {', '.join(names)}; see wn.summary(model)" if names else None


def _why_not(module: nn.Module) -> str | None:
    """Why a module that multiplies by matrices is left as it is."""
    if isinstance(module, KINDS) and kind_of(module) is None:
        return f"a subclass of {next(kind.__name__ for kind in KINDS if isinstance(module, kind))}"
    return f"in a {type(module).__name__}" if isinstance(module, _HOLDERS) else None


class Row(NamedTuple):
    """A weight, or a number of like ones, in a table."""

    name: str
    kind: str
    note: str
    weights: int


def listed(names: Iterable[str]) -> str:
    """Names in a line, those that differ in numbers alone as one."""
    return ", ".join(row.name for row, _ in _merged([Row(name, "", "", 0) for name in names]))


def _merged(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Rows that differ in the numbers of their names alone as one, ``*`` for these; how many they are."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((re.sub(r"\d+", "*", row.name), row.kind, row.note), []).append(row)
    for (name, kind, note), same in groups.items():
        yield (
            Row(same[0].name if len(same) == 1 else name, kind, note, sum(r.weights for r in same)),
            len(same),
        )


def summary(model: nn.Module) -> str:
    """A table of a model's weights of two or more axes: which are normalised, how, and which are not.

    Names that differ in numbers alone share a row.

    >>> from wn.norm import normalize
    >>> print(summary(normalize(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 8), nn.Embedding(5, 2)))))
    normalised      n  kind       weights
    *               2  Linear          22  weight_norm
    not normalised
    2.weight        1  Embedding       10
    """
    normalised: list[Row] = []
    others: list[Row] = []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False):
            if p.dim() < 2 or p in seen:
                continue
            seen.add(p)
            if isinstance(module, NormalizedLayer):
                normalised.append(Row(name or "the model", module.kind.__name__, _norm_of(module), p.numel()))
            else:
                why = _why_not(module) or ("left out" if isinstance(module, KINDS) else "")
                others.append(Row(f"{name}.{key}".lstrip("."), type(module).__name__, why, p.numel()))
    lines = [("normalised", "n", "kind", "weights", "")]
    for title, rows in (("", normalised), ("not normalised", others)):
        if title and rows:
            lines.append((title, "", "", "", ""))
        lines += [(r.name, f"{n}", r.kind, f"{r.weights:,}", r.note) for r, n in _merged(rows)]
    a, b, c, d, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    table = [
        f"{name:{a}}  {n:>{b}}  {kind:{c}}  {weights:>{d}}  {note}" for name, n, kind, weights, note in lines
    ]
    return "\n".join(line.rstrip() for line in table)


def _norm_of(layer: NormalizedLayer) -> str:
    name = label({key: value for key, value in layer.choices.items() if key in DEFAULTS})
    from_zero = layer.gain == "free" and not bool(layer.g.is_meta or layer.g.any())
    return f"{name}, starts at zero" if from_zero else name
