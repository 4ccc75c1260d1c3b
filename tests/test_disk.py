"""A disk that is full, or files that cannot be opened: one line, nothing lost, the same command goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import outcome, tiny
from train_cases import NO_REPORT, REPOSITORY, SHORT, Call

from wn import resources, sweep
from wn.checkpoints import Checkpoints
from wn.records import Record
from wn.report.__main__ import main as report

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE]
PLACES: list[tuple[Any, str]] = [(Record, "append"), (Record, "save"), (Checkpoints, "save")]


def failing_after(calls: int, function: Callable[..., Any], number: int) -> Callable[..., Any]:
    left = [calls]

    def failing(*words: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return function(*words, **options)

    return failing


def trained(folder: Path, seeds: int) -> dict[str, Any]:
    """What a sweep of so many runs comes to; a single one keeps its model."""
    settings = {"epochs": 5, "save": seeds == 1}
    sweep.train_sweep([tiny(folder, seed=seed, trainer=settings) for seed in range(seeds)])
    return outcome(folder)


@pytest.mark.parametrize("place", range(len(PLACES)))
@pytest.mark.parametrize("seeds", [1, 4])
def test_what_the_disk_ended_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, seeds: int
) -> None:
    """Every place meets two of the errors: at its first call, and at its second."""
    owner, name = PLACES[place]
    whole = trained(tmp_path / "whole", seeds)
    for i, number in enumerate(ERRORS[place::3]):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing_after(i, getattr(owner, name), number))
            with pytest.raises(OSError, match=os.strerror(number)):
                trained(tmp_path / f"cut{i}", seeds)
        assert trained(tmp_path / f"cut{i}", seeds) == whole


@pytest.mark.parametrize("words", ["norm=none", "-m norm=none seed=0,1"])
@pytest.mark.parametrize("error", range(len(ERRORS)))
def test_the_command_says_so_in_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: int, words: str
) -> None:
    """Of the same errors at the same places."""
    (owner, name), number = PLACES[error % 3], ERRORS[error]
    words += " trainer.epochs=5 trainer.checkpoint_every=2"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing_after(error // 3, getattr(owner, name), number))
        result = call(words)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert os.strerror(number) in result.err
    assert "Traceback" not in result.err
    assert call(words).status == 0


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    words = f"{SHORT} norm=none trainer.epochs=60 trainer.checkpoint_every=2"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + NO_REPORT, *words.split(), f"runs_dir={tmp_path / 'runs'}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python writes half a .pyc, and says nothing
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"{os.strerror(errno.EFBIG)}; the same command goes on from here when there is space\n"
    )
    assert done.stderr.count("\n") == 1


def test_a_report_says_which_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call("-m norm=none seed=0,1").status == 0
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert report(["adhoc"]) == 1
    assert "report/runs.csv: No space left on device; " in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


# Open files


@pytest.mark.parametrize(("limit", "size"), [(256, 100), (10_000, 300)])
def test_a_stack_opens_no_more_files_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, size: int
) -> None:
    monkeypatch.setattr(sweep, "open_files", lambda: limit)
    monkeypatch.setattr(sweep, "largest_stack", lambda *_: 1000)
    configs = {c.run_id: c for c in (tiny(tmp_path, seed=seed) for seed in range(300))}
    resolved = dict.fromkeys(configs, (None, None))
    for members in (None, 300):
        stacks = sweep._stacks(configs, resolved, members)  # type: ignore[arg-type]
        assert max(map(len, stacks)) == size
        assert size <= limit - resources.OTHER_FILES


def test_the_limit_is_raised_as_far_as_it_may() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        enough, hard = resources.ENOUGH_FILES, before[1]
        most = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        assert resources.open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
