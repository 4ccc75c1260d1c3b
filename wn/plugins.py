"""A norm, a model or a data set of your own: Python files that you name, as in ``plugins=my_norm.py``. ::

    from wn import plugins
    from wn.norm import NormalizedLayer

    @plugins.norm("my_norm")  # then norm=my_norm is a norm like any other
    class MyNorm(NormalizedLayer):
        def effective_weight(self): ...

The file's SHA-256 is part of the identity of runs that use it: an edited file makes other runs. Modules that
it imports are not: what decides numbers belongs into the file itself. Code is run of files that are named on
the command line, or in the experiment's file that it chooses (:func:`load`), and never because a
configuration or a record says so.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic

from wn.config import Config, UserError, hashes, nearest, places
from wn.config.compose import CONFIGS
from wn.config.errors import explain
from wn.config.models import Section

log = logging.getLogger(__name__)

Made = TypeVar("Made", bound=Callable[..., Any])


class Plugin(NamedTuple):
    """What a file registered, the file's SHA-256, and what it says of itself."""

    make: Callable[..., Any]
    file: Path
    sha256: str
    declared: dict[str, Any]

    def __call__(self, *arguments: Any, **choices: Any) -> Any:
        """Call the user's code; UserError, with the line of their file, for whatever it raises."""
        with _mistakes_of(self.file):
            return self.make(*arguments, **choices)


_registered: dict[tuple[str, str], Plugin] = {}
"""By group (``norm``, ``model``, ``data``) and name."""

_loading: tuple[Path, str] | None = None
"""The file that is being run, and its SHA-256."""


def norm(name: str, **declared: Any) -> Callable[[Made], Made]:
    """Register ``make(layer, **choices) -> nn.Module`` as ``norm=name``.

    It is called for every linear and convolutional layer of a model and returns what takes its place: a
    subclass of :class:`wn.norm.NormalizedLayer`, or any module with the layer's call. ``choices`` are the
    fields of ``norm`` that were set, as in ``norm=name norm.init=data``. ``python -m wn.check`` tests what is
    ``declared`` in the words of :class:`wn.grammar.Properties`. A norm with a number of its own is registered
    once for each value of it. Weight decay, and learning rates of gains and biases, concern parameters of
    :class:`~wn.norm.NormalizedLayer` alone.
    """
    return lambda make: _register("norm", name, make, declared)


def model(name: str) -> Callable[[Made], Made]:
    """Register ``build(shape, classes, **numbers) -> nn.Module`` as ``model=name``.

    ``shape``: that of an image, (C, H, W). The module is of plain torch layers and maps ``[batch, *shape]``
    to logits ``[batch, classes]``. Further parameters, each with a type and a default, are numbers of the
    configuration: ``width: int = 64`` is set by ``model.width=32``. Initial weights come from torch's
    generator, which is seeded. Noise and dropout are those of :mod:`wn.models.noise`, and a buffer is changed
    in place: a pass that draws from torch's generator or replaces a buffer is refused, and when it trains one
    that recomputes activations (``torch.utils.checkpoint``).
    """
    return lambda make: _register("model", name, make, {})


def data(name: str) -> Callable[[Made], Made]:
    """Register ``read() -> ((x, y), (x_test, y_test))`` as ``data=name``.

    Arrays or tensors: images ``[N, C, H, W]`` or ``[N, H, W]``, or features ``[N, D]``, bytes or floats;
    labels ``[N]`` from 0 on. The same each time: its code is part of a run's identity, files that it reads
    are not.
    """
    return lambda make: _register("data", name, make, {})


def _register(group: str, name: str, make: Made, declared: dict[str, Any]) -> Made:
    if _loading is None:  # imported by something else than load: what it defines is used there
        return make
    taken = _registered.get((group, name))
    if places.find(CONFIGS, f"{group}/{name}.yaml").is_file() or taken:
        whose = taken.file.name if taken else "the project"
        raise UserError(f"{group}={name}: this name is taken, by {whose}; choose another")
    if not name.isidentifier():
        raise UserError(f"{group}={name}: a name is of letters, digits and _")
    _registered[group, name] = Plugin(make, *_loading, declared)
    return make


def load(files: Iterable[str]) -> None:
    """Run the files that the user named, so that they register what they define, and forget any other.

    A file that was run as it is now is not run again.

    Raises:
        UserError: no such file, an exception in it (with its line), or a name that is taken.
    """
    global _registered, _loading
    named = list(files)
    hashes(named)  # all are there
    paths = list(dict.fromkeys(Path(file).resolve() for file in named))
    before, _registered = _registered, {}
    try:
        for path in paths:
            source = path.read_bytes()
            _loading = path, hashlib.sha256(source).hexdigest()
            known = {
                key: plugin for key, plugin in before.items() if (plugin.file, plugin.sha256) == _loading
            }
            if not known:
                _run(path, source)
            _registered |= known
    except BaseException:
        _registered = before
        raise
    finally:
        _loading = None


def _run(path: Path, source: bytes) -> None:
    module = types.ModuleType(f"wn_plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where pickle and pydantic look a class up
    known = {*sys.modules}
    with _mistakes_of(path):
        exec(compile(source, str(path), "exec"), module.__dict__)
    if parent_process() is None and (others := _own_files({*sys.modules} - known)):  # said once, by no worker
        log.warning(
            "%s: imports %s, which is no part of a run's identity: after a change of it, done runs stay done",
            *(path.name, ", ".join(others)),
        )
    if all(plugin.file != path for plugin in _registered.values()):
        raise UserError(f"{path.name}: registers nothing; see plugins.norm, plugins.model and plugins.data")


def _own_files(modules: Iterable[str]) -> list[str]:
    """Those that lie neither with Python, nor with what is installed, nor in this project."""
    files = [getattr(sys.modules[name], "__file__", None) for name in modules]
    paths = [Path(file).resolve() for file in files if file]
    known = [Path(place).resolve() for place in (sys.prefix, sys.base_prefix, Path(__file__).parent)]
    return sorted(path.name for path in paths if not any(map(path.is_relative_to, known)))


def loaded() -> list[tuple[Path, str]]:
    """The files that were run, and their SHA-256, for a worker process to :func:`load_again`."""
    return list(dict.fromkeys((plugin.file, plugin.sha256) for plugin in _registered.values()))


def load_again(files: Sequence[tuple[Path, str]]) -> None:
    """In a worker process: run what the user named in the parent; UserError if it has changed since."""
    if loaded() == list(files):
        return
    load([str(path) for path, _ in files])
    for path, sha256 in files:
        if (path, sha256) not in loaded():
            raise UserError(f"{path.name}: was edited while it is used; start again")


def names(group: str) -> list[str]:
    return [name for known, name in _registered if known == group]


def find(group: str, name: str) -> Plugin:
    """What ``group=name`` registered; UserError if no loaded file did."""
    plugin = _registered.get((group, name))
    if plugin is None:
        known = nearest(name, [*names(group), *(path.stem for path in (CONFIGS / group).glob("*.yaml"))])
        raise UserError(f"{group}={name}: no file registers it that plugins=[...] names{known}")
    return plugin


def check(config: Config) -> None:
    """Raise UserError unless what a configuration takes from plugins is loaded, from the very same files."""
    for group, name in config.own.items():
        plugin = find(group, name)
        if plugin.sha256 not in config.plugins.values():
            raise UserError(f"{group}={name}: {plugin.file.name} is another version than this run's; retrain")


def numbers(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of ``model=name``: the builder's defaults and, checked, those that are given.

    Raises:
        UserError: an unknown number, or a value of another type; a builder with other parameters.
    """
    plugin = find("model", name)
    with _mistakes_of(plugin.file):
        parameters = list(inspect.signature(plugin.make, eval_str=True).parameters.values())
        own = parameters[2:]
        if len(parameters) < 2 or any(p.default is p.empty or p.name == "model_config" for p in own):
            want = "(shape, classes), then numbers with defaults, none of the name model_config"
            raise TypeError(f"model={name} should take {want}")
        fields: dict[str, Any] = {
            p.name: (Any if p.annotation is p.empty else p.annotation, p.default) for p in own
        }
        section = pydantic.create_model(name, __base__=Section, **fields)
    try:
        return section(**given).model_dump()
    except pydantic.ValidationError as error:
        raise UserError(f"model.{explain(section, error)}") from None


@contextmanager
def _mistakes_of(file: Path) -> Iterator[None]:
    """Turns an exception of the user's code into a UserError with the line of their file that led to it."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else None
        text = f"{file.name}{'' if line is None else f':{line}'}: {type(error).__name__}: {error}"
        raise UserError(" ".join(text.split())) from None
