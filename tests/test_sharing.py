"""Several processes share a sweep by its locks, several GPUs by worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sweep_cases import grid, outcome, stack_of_three, tiny, train_until

from wn import processes, resources, run, stops, sweep
from wn.config import Config
from wn.records import Record
from wn.stops import Preempted
from wn.sweep import train_sweep


def hold(config: Config) -> Record:
    """What a process has that trains this run."""
    held = Record.of(config)
    assert held.claim()
    return held


@pytest.fixture
def while_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something happen whenever a sweep waits for other processes."""

    def patch(action: Callable[[], object]) -> None:
        clock = SimpleNamespace(sleep=lambda _: action(), monotonic=time.monotonic)
        monkeypatch.setattr(sweep, "time", clock)

    return patch


# Other processes


def test_what_another_process_leaves_undone_is_taken_over(
    tmp_path: Path, steps: list[int], while_waiting: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = grid(tmp_path)
    held = hold(configs[0])
    seen: list[list[bool]] = []

    def look() -> None:
        seen.append([Record.of(config).done for config in configs])
        if len(seen) == 3:
            steps.clear()
            held.release()

    while_waiting(look)
    assert all(record.done for record in train_sweep(configs))
    # Who has the first run of a stack is taken to have the stack; what is not held after that is trained.
    assert seen == [[False] * 4 + [True] * 4] + [[False] + [True] * 7] * 2
    assert steps == [1] * 6
    waiting = "waiting for 1 run that other processes train"
    assert [line for line in capsys.readouterr().out.splitlines() if "waiting" in line] == [waiting] * 2


def test_a_result_of_another_process_is_waited_for(
    tmp_path: Path, steps: list[int], while_waiting: Any
) -> None:
    config = tiny(tmp_path / "here")
    (there,) = train_sweep([tiny(tmp_path / "there")])
    steps.clear()
    held = hold(config)

    def finish() -> None:
        held.content = there.content
        held.save()
        held.release()

    while_waiting(finish)
    (record,) = train_sweep([config])
    assert (record.content, steps) == (there.content, [])


def test_what_failed_elsewhere_meanwhile_is_not_tried_again(
    tmp_path: Path, steps: list[int], while_waiting: Any
) -> None:
    config = tiny(tmp_path)
    held = hold(config)

    def fail() -> None:
        held.begin(config, [config.run_id], "a processor")
        held.save(status="failed", error="there")
        held.release()

    while_waiting(fail)
    (record,) = train_sweep([config])
    assert (record.status, record.content["error"], steps) == ("failed", "there", [])


def test_who_waits_is_stopped_by_the_clock(
    tmp_path: Path, while_waiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path, trainer={"max_minutes": 50})
    held = hold(config)
    monkeypatch.setattr(stops, "STARTED", time.monotonic())
    while_waiting(lambda: monkeypatch.setattr(stops, "STARTED", time.monotonic() - 3600))
    with pytest.raises(Preempted, match="waiting for 1 run that other processes train") as stopped:
        train_sweep([config])
    assert stopped.value.status == 75
    held.release()


def test_nothing_is_resumed_while_another_process_has_a_member(
    tmp_path: Path, steps: list[int], while_waiting: Any
) -> None:
    train_sweep(stack_of_three(tmp_path / "whole"))
    configs = stack_of_three(tmp_path / "cut")
    assert not train_until(25, configs)
    for config in configs:
        held, waits = hold(config), []

        def give_back(
            waits: list[int] = waits, held: Record = held, last: bool = config is configs[-1]
        ) -> None:
            waits.append(len(steps))
            if len(waits) == 3:
                held.release()
                if not last:
                    raise TimeoutError

        steps.clear()
        while_waiting(give_back)
        if config is configs[-1]:
            train_sweep(configs)
        else:
            with pytest.raises(TimeoutError):
                train_sweep(configs)
        assert waits == [0, 0, 0]
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_what_others_of_its_stack_hold_up_waits_and_says_so_once(
    tmp_path: Path, while_waiting: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a stack that was cut short one run is in training elsewhere: the others are held by nobody."""
    configs = stack_of_three(tmp_path)
    assert not train_until(25, configs)
    held, looks = hold(configs[0]), []

    def look() -> None:
        looks.append(1)
        if len(looks) == 6:
            held.release()

    while_waiting(look)
    assert all(record.done for record in train_sweep(configs))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waiting")]
    assert len(looks) == 6
    assert len(said) == 2  # at first it is not known that they are held up


def test_a_stack_whose_halves_another_process_takes_has_trained_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory: for a moment nobody has its runs."""
    train_stack, halves = run.train_stack, [False, False]
    monkeypatch.setattr(run._Session, "train", lambda session: False)
    monkeypatch.setattr(run, "train_stack", lambda configs: halves.pop())
    assert not train_stack([tiny(tmp_path, seed=seed) for seed in range(3)])
    assert not halves


def test_of_two_that_come_to_a_stack_at_once_one_takes_all_of_it(tmp_path: Path) -> None:
    """The other one claims nothing, rather than what the first one has not come to yet."""
    configs = [tiny(tmp_path, seed=seed) for seed in range(3)]
    held = hold(configs[0])
    assert not sweep.train_stack(configs)
    assert not list(tmp_path.rglob("record.json"))
    held.release()
    assert sweep.train_stack(configs)
    assert not sweep.train_stack(configs)  # done


# Several GPUs


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are free on each; a tensor on one of them is on the CPU."""
    free = [8000, 4000, 6000, 8000]
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index or 0], 0))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    monkeypatch.setattr(resources, "bytes_per_member", lambda *_: 100)
    return free


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"] * 6),
        ("cuda", ["cuda"] * 6),
        ("cpu", ["cpu"] * 6),
    ],
)
def test_each_worker_has_a_gpu_of_its_own_unless_one_is_named(
    four_gpus: list[int], monkeypatch: pytest.MonkeyPatch, name: str, chosen: list[str]
) -> None:
    for place, device in enumerate(chosen):
        monkeypatch.setattr(processes, "PLACE", place)
        assert resources.pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "epochs", "workers"),
    [
        *(("auto", 10_000, 4), ("auto", 3000, 3), ("auto", 1, 1), ("cuda:1", 10_000, 1), ("cuda", 10_000, 1)),
        *(("cpu", 10_000, 5), ("cpu", 3000, 3), ("cpu", 1, 1)),
    ],
)
def test_a_sweep_has_a_worker_for_each_gpu_or_core_where_that_pays(
    tmp_path: Path,
    four_gpus: list[int],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    epochs: int,
    workers: int,
) -> None:
    """Two steps an epoch, two runs, of which one is done: 12,000 steps are enough for three."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    trainer = {"device": name, "epochs": epochs}
    runs = {c.run_id: c for c in (tiny(tmp_path, seed=seed, trainer=trainer) for seed in range(2))}
    dataset = resources.resolve(tiny(tmp_path))[1]
    resolved = {[*runs][-1]: (resources.pick_device(name), dataset)}
    assert sweep._workers(runs, resolved) == workers


@pytest.mark.parametrize(
    ("name", "workers", "members"),
    [
        ("auto", 1, 64),  # 0.8 of the 8,000 bytes of the first one
        ("auto", 4, 32),  # 4,000 on the second one
        ("auto", 8, 16),  # and two workers on each
        ("cuda:2", 1, 48),
        ("cuda:2", 2, 24),
    ],
)
def test_a_stack_fits_on_whichever_gpu_it_comes_to(
    tmp_path: Path, four_gpus: list[int], name: str, workers: int, members: int
) -> None:
    config = tiny(tmp_path, trainer={"device": name})
    device = resources.pick_device(name)
    assert resources.largest_stack(config, device, None, workers) == members  # type: ignore[arg-type]


def note_place(folder: Path, item: int) -> None:
    """Write down a process's place, and go on when two have come."""
    (folder / str(processes.PLACE)).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("quick_workers")
def test_workers_know_their_places(tmp_path: Path) -> None:
    import functools

    assert processes.map_workers(functools.partial(note_place, tmp_path), range(4), 2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
