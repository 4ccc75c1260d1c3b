"""Many runs: skip what is done, take up what was cut short, train the rest in stacks."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

from wn import records, tracking
from wn.config import Config
from wn.records import Record
from wn.run import check, title, train_stack


def train_sweep(configs: Sequence[Config], members: int | None = None) -> list[Record]:
    """Train every run that is not done yet, and return all their records.

    Args:
        configs: the runs, in any number of architectures; the same run twice counts once.
        members: the largest stack; None lets :func:`stack_size` choose.

    Raises:
        UserError: one of them cannot be trained here.
    """
    runs = {config.run_id: config for config in configs}
    todo = outstanding(configs)
    _say(f"{len(runs)} runs: {len(runs) - len(todo)} done before, {len(todo)} to train")
    cut_short = _interrupted(runs, todo)
    for ids in cut_short:
        _train([runs[key] for key in ids], resuming=True)
    taken = {key for ids in cut_short for key in ids}
    for stack in _stacks([config for key, config in todo.items() if key not in taken], members):
        _train(stack)
    return [Record.of(config) for config in configs]


def outstanding(configs: Sequence[Config]) -> dict[str, Config]:
    """The runs, by run_id, that neither this experiment nor another has done; all can be trained here.

    Raises:
        UserError: one of them cannot.
    """
    runs = {config.run_id: config for config in configs}
    missing = {key: config for key, config in runs.items() if not Record.of(config).done}
    todo = {key: config for key, config in missing.items() if not records.adopt(config)}
    if len(todo) < len(missing):
        _say(f"{len(missing) - len(todo)} runs taken over from other experiments")
    check(todo.values())
    return todo


def _train(stack: list[Config], resuming: bool = False) -> None:
    """Train one stack, copy it to W&B (a run alone is copied while it trains), and say what came of it."""
    started = time.monotonic()
    train_stack(stack, resuming)
    ended = [Record.of(config) for config in stack]
    if len(stack) > 1:
        here = [record for record in ended if record.status not in ("new", "running")]  # not elsewhere
        tracking.mirror_all(here, stack[0].tracking)
    _say(f"{title(stack)}: {_outcome(ended, time.monotonic() - started)}")


def _outcome(ended: list[Record], seconds: float) -> str:
    """What became of a stack, or, in more detail, of a run alone."""
    if len(ended) > 1:
        counts = Counter(record.status for record in ended)
        return ", ".join(f"{n} {status}" for status, n in counts.items()) + f" in {seconds:.1f} s"
    error = ended[0].content.get("final", {}).get("valid_error")
    shown = "" if error is None else f", validation error {100 * error:.2f} %"
    return f"{ended[0].status} in {seconds:.1f} s{shown}, record {ended[0].folder}"


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupted(runs: dict[str, Config], todo: dict[str, Config]) -> list[list[str]]:
    """The stacks, as lists of run_ids, that were cut short and whose members are all among ``runs``.

    Not those that failed: the user may have asked for smaller ones.
    """
    unfinished = [record for record in map(Record.of, todo.values()) if record.status == "running"]
    named = [record.content["stack"] for record in unfinished]
    unique = {tuple(ids): list(ids) for ids in named if len(ids) > 1}
    return [ids for ids in unique.values() if all(key in runs for key in ids)]


def _stacks(configs: list[Config], members: int | None) -> list[list[Config]]:
    """Runs that can train together, together, in stacks of nearly equal size."""
    groups: dict[str, list[Config]] = defaultdict(list)
    for config in configs:
        groups[config.stack_key].append(config)
    stacks = []
    for group in groups.values():
        largest = members or stack_size(group[0])
        count = -(-len(group) // largest)
        stacks += [group[i::count] for i in range(count)]
    return stacks


def stack_size(config: Config) -> int:
    """How many members train best together."""
    return 64
