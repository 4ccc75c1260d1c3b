"""``python -m wn.check NORM``: does a norm keep the contract of all norms (:mod:`wn.contracts`)?

NORM is a file that registers one (:mod:`wn.plugins`) or a preset's name; more choices (norm.init=data) may
follow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from wn import grammar, plugins
from wn.config import UserError
from wn.config.compose import compose
from wn.config.yaml_files import listed, parse_value
from wn.contracts import CONTRACTS, PROPERTIES, Make, Subject
from wn.models import with_norm
from wn.stops import tell

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(5, 32), (6, 5)),
    "Conv2d": (lambda: nn.Conv2d(3, 32, 3, padding=1), (5, 3, 5, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 32, 2, stride=2), (5, 3, 3, 4)),
}


class Finding(NamedTuple):
    """A line of the table: ``holds`` is None where nothing was declared."""

    contract: str
    holds: bool | None
    measured: str


def check(make: Make, declared: dict[str, Any]) -> list[Finding]:
    """All contracts for every kind of layer that the norm takes, and the properties of a linear one."""
    subjects, findings = {}, []
    for kind, (plain, shape) in KINDS.items():
        subject = Subject(make, plain, shape)
        try:
            subject.layer()(subject.x())
        except Exception as error:  # the user's code may raise anything
            findings.append(Finding(f"{kind} layers", None, f"not supported: {_line(error)}"))
        else:
            subjects[kind] = subject
    if not subjects:
        return [finding._replace(holds=False) for finding in findings]
    findings += [_contract(subjects, *contract) for contract in CONTRACTS.items()]
    for name, measure in PROPERTIES.items():
        findings.append(_property(next(iter(subjects.values())), name, measure, declared.get(name)))
    return findings


def _contract(subjects: dict[str, Subject], name: str, test: Callable[[Subject], str]) -> Finding:
    told, broken = [], []
    for kind, subject in subjects.items():
        try:
            told.append(test(subject))
        except Exception as error:
            broken.append(f"{kind}: {_line(error)}")
    return Finding(name, not broken, "; ".join(broken) or told[0])


def _property(
    subject: Subject, name: str, measure: Callable[[Subject], str | bool], declared: Any
) -> Finding:
    words = {"True": "yes", "False": "no"}
    try:
        value = str(measure(subject))
    except Exception as error:
        return Finding(name.replace("_", " "), False, _line(error))
    text, said = (words.get(one, one) for one in (value, str(declared)))
    if declared is None:
        return Finding(name.replace("_", " "), None, f"{text} (nothing declared)")
    return Finding(name.replace("_", " "), text == said, f"{text}, declared {said}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """What a command line is about, as settings: files of plugins, a preset's name, ``key=value``.

    The files are run. Without a name, it is the one norm that they register.

    Raises:
        UserError: they register no norm, or several; a word is none of these.
    """
    files = [word for word in words if word.endswith(".py") and "=" not in word]
    named = [word for word in words if "=" not in word and word not in files]
    settings: dict[str, Any] = {word.partition("=")[0]: parse_value(word) for word in words if "=" in word}
    files += listed(settings.pop("plugins", []))
    if files:
        settings["plugins"] = files
    plugins.load(files)
    if len(named) > 1 or (named and "norm" in settings):
        raise UserError(f"{' '.join(named)}: one norm at a time")
    if "norm" not in settings:
        own = named or plugins.names("norm")
        if len(own) != 1:
            raise UserError(f"{len(own)} norms in {', '.join(files) or 'no file'}; choose one: norm=NAME")
        settings["norm"] = own[0]
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 if all contracts hold, 1 if not, 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.check", description=__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="NORM", help="my_norm.py, a preset's name, norm.KEY=VALUE"
    )
    try:
        config = compose(settings_of(parser.parse_args(arguments).words))
        plugins.check(config)
        declared = grammar.properties(config.norm.model_dump(), dense=True)._asdict()
        if config.norm.plugin:
            declared = plugins.find("norm", config.norm.plugin).declared
    except (UserError, OSError, KeyboardInterrupt) as end:
        return tell(end)
    findings = check(lambda layer: with_norm(layer, config.norm), declared)
    words = {True: "yes", False: "NO", None: "–"}
    rows = [("contract", "holds", "measured"), *((f.contract, words[f.holds], f.measured) for f in findings)]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    print(config.norm.label)
    print(*("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]]) for row in rows), sep="\n")
    return int(any(finding.holds is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
