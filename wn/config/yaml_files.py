"""The YAML of experiments and presets: a spelling has one meaning, or is refused with its line.

PyYAML reads YAML 1.1, where ``1e-3`` is text, ``010`` eight, ``1:30`` ninety and ``yes`` true. There the
later of two equal keys counts, and a few aliases can stand for a billion values.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

from wn.config.errors import UserError

LARGEST_FILE = 100_000
"""Bytes: a file that takes a second to read. The largest of this project has 3,000."""

DEEPEST = 20  # levels of nesting

MEANINGS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]{0,99})",
    "float": r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:[0-9]+|inf)|\.nan",
    "several": r"[-+]?[._]*[0-9][0-9._]*(?:[eE][-+]?[0-9]+)?|0o[0-7]+",
}
"""Plain scalars of YAML 1.2, in the order in which they are tried; then ``several``: what some readers take
for a number, like all that is no text in YAML 1.1."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [
            *((f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{form})\Z")) for tag, form in MEANINGS.items()),
            *(
                ("tag:yaml.org,2002:several", form)
                for forms in yaml.SafeLoader.yaml_implicit_resolvers.values()
                for _, form in forms
            ),
        ]
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem(f"*{event.anchor}: aliases are not read; write the value out", event)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _problem(f"nested more than {DEEPEST} deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _problem("a key should be text", key)
            if key.value in seen:
                raise _problem(f"{key.value} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_several(self, node: Any) -> None:
        word = node.value
        right = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(word.lower())
        right = right or ("a plain decimal number" if word[-1:].isalnum() else "it otherwise")
        raise _problem(
            f"{word:.40} has several meanings in YAML; write {right}, or '{word:.40}' for text", node
        )


_Loader.add_constructor("tag:yaml.org,2002:several", _Loader.construct_several)


def _problem(text: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=where.start_mark)


def read_yaml(path: Path, shown: str) -> dict[str, Any]:
    """The keys and values of a file; none where it is empty. ``shown`` is its name in messages.

    Raises:
        UserError: it is no file, larger than :data:`LARGEST_FILE`, no YAML, or a value has several meanings.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write to it
            raise ValueError("not a file" if path.exists() else "no such file")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
        tree = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{shown}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict | None):
        raise UserError(f"{shown}: should hold lines of KEY: VALUE")
    return tree or {}


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """A job of a sweep reads the files of all experiments anew, and reading YAML is slow."""
    return parse_yaml(text)


def parse_value(word: str) -> Any:
    """The value in a word ``KEY=VALUE`` of a command line, read as those of files are.

    >>> parse_value("optim.lr=1e-3"), parse_value("plugins=[a.py]")
    (0.001, ['a.py'])
    """
    try:
        return parse_yaml(word.partition("=")[2])
    except ValueError as error:
        raise UserError(f"{word}: {' '.join(str(error).split())}") from None


def listed(value: Any) -> list[str]:
    """A value that stands for a list of one, or the list, as text: ``plugins=a.py`` is ``plugins=[a.py]``."""
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def parse_yaml(text: str) -> Any:
    """The value of a text; ValueError, with the line, where it is none or has several meanings."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        line = f"line {at.line + 1}: " if at else ""
        raise ValueError(f"{line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a byte that no text has
        raise ValueError(str(error)) from None
