"""Mistakes of the user's, each in one line that says what is wrong and what would be right."""

from __future__ import annotations

import difflib
import errno
from typing import Any, get_args

import pydantic


class UserError(Exception):
    """Something the user can mend; its text is the one line that the user is shown."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


def ends_training(error: BaseException) -> bool:
    """Whether an error is of the disk, which fails no run: the same command goes on once it is mended."""
    return isinstance(error, OSError) and error.errno in FULL | TOO_MANY_FILES | {errno.EROFS}


def explain_disk(error: OSError, otherwise: str = "; name another folder with runs_dir=...") -> str:
    """An error of the system's about a file, and what helps, in one line."""
    text = f"{short(error.filename)}: " * bool(error.filename) + (error.strerror or type(error).__name__)
    if error.errno in TOO_MANY_FILES:
        return (
            f"{text}; raise the limit (ulimit -n 4096), or train fewer together (hydra.launcher.members=64)"
        )
    if error.errno in FULL:
        return f"{text}; the same command goes on from here when there is space"
    return text + otherwise


def explain(root: type[pydantic.BaseModel], error: pydantic.ValidationError) -> str:
    """All of pydantic's findings about a configuration tree, in one line."""
    return "; ".join(_finding(root, found) for found in error.errors())


def _finding(root: type[pydantic.BaseModel], error: Any) -> str:
    section, *rest = map(str, error["loc"])
    if section == "model":
        rest = rest[1:]  # pydantic names the member of the union first
    key = ".".join([section, *rest])
    if error["type"] == "extra_forbidden":
        return explain_key(root, key)
    if error["type"] == "union_tag_invalid":
        return f"{key}.name={error['ctx']['tag']}: should be one of {error['ctx']['expected_tags']}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}={short(error['input'])}: {error['msg']}"


def explain_file(root: type[pydantic.BaseModel], error: pydantic.ValidationError) -> str:
    """All of pydantic's findings about a file, in one line."""
    return "; ".join(dict.fromkeys(_finding_in_file(root, found) for found in error.errors()))


TAGS = ("values", "names")  # of an axis that is a list or a mapping: the file has no such key


def _finding_in_file(root: type[pydantic.BaseModel], error: Any) -> str:
    keys = [str(part + 1) if isinstance(part, int) else part for part in error["loc"]]  # a list's first is 1
    keys = [key for key in keys if key not in TAGS]
    where = " ".join(keys)
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key" + nearest(keys[-1], list(root.model_fields)) * (len(keys) == 1)
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}".removeprefix(": ")
    return f"{where}: {short(error['input'])}: {error['msg']}"


def short(value: Any, most: int = 60) -> str:
    """A value as text, of which a message shows so many characters.

    >>> short("9" * 1000)[-5:]
    '99...'
    """
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def explain_key(root: type[pydantic.BaseModel], key: str) -> str:
    """Why there is no such dotted key in a configuration, in one line."""
    section: Any = root
    for part in key.split("."):
        fields = _fields(section)
        if part not in fields:
            owners = [name for name, f in root.model_fields.items() if part in _fields(f.annotation)]
            if section is root and owners:
                return f"{key}: unknown key; did you mean {' or '.join(f'{o}.{part}' for o in owners)}?"
            return f"{key}: unknown key{nearest(part, list(fields))}"
        models = [model for model in get_args(section) if part in _fields(model)]
        if len(models) < len(get_args(section)):
            return f"{key}: a key of model={' or '.join(model().name for model in models)} alone"
        section = fields[part].annotation
    return f"{key}: there already; write {key}=... without a plus sign"


def _fields(section: Any) -> dict[str, Any]:
    """The fields of a section, or of every member of a union; none of a plain value."""
    fields: dict[str, Any] = dict(getattr(section, "model_fields", {}))
    for model in get_args(section):
        fields |= _fields(model)
    return fields


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or the list of known words.

    >>> nearest("sede", ["seed", "norm"])
    "; did you mean 'seed'?"
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"
