"""Go or no-go for a GPU, in two to five minutes, before anything is trained on it.

python scripts/gpu_check.py                 # on the GPU: is it right, and what does a row of the table cost?
python scripts/gpu_check.py --device cpu    # the same comparisons with the CPU in the GPU's place
python scripts/gpu_check.py --cost-only     # compiles the table's steps in parallel, ahead of training

Right: eight steps in float64 of every model, by the GPU against the CPU, as a replayed graph against step by
step, in a stack that loses a member against alone, resumed against uninterrupted, compiled against not.
Cost: start and step of the paper's ConvNet at full size under each norm of the table, and what 200 epochs
take of both; then all compiled ones at once, which tells whether runs share this GPU well.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from wn import experiments  # noqa: E402 - the project is found first
from wn.config import TrainerConfig, UserError, parse  # noqa: E402
from wn.data import Dataset, Split  # noqa: E402
from wn.presets import PRESETS  # noqa: E402
from wn.resources import configure_torch, pick_device  # noqa: E402
from wn.trainer import Observer, Trainer  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": [16, 16], "noise": 0.1, "dropout": 0.2},
    "convnet": {"width": 8},
    "transformer": {"patch": 4, "width": 8, "heads": 2, "depth": 1},
    "mlp_vae": {"widths": [16], "latents": 4},
    "conv_vae": {"channels": [4, 6], "hidden": 8, "latents": 4, "flow_width": 8, "posterior": "iaf"},
    "resnet_vae": {"channels": 4, "depth": 1, "latents": 4, "flow_width": 8, "posterior": "iaf"},
}
NORMS = ("none", "batch_norm", "weight_norm_init", "weight_norm_mean_only_bn_init")
TABLE = tuple(dict.fromkeys(row.norm for row in experiments.load("cifar10_table").rows))
SAME = (1e-9, 1e-6)  # largest difference of the loss, and of what eight steps moved, both relative
CLOSE = (1e-5, 1e-3)  # where sums are taken in another order, which Adam's division amplifies
STEPS, STOP, BATCH = 8, 5, 20
REPLAYS, TABLE_STEPS = 300, 200 * 500
PATIENCE = 900  # seconds that a process waits for the others to compile


def trainer_of(
    model: dict[str, Any], norm: str, device: str, images: int, members: int = 1, **settings: Any
) -> Trainer:
    """A trainer on random images, initialised and about to take its first step."""
    settings = {"precision": "float64", "batch_size": BATCH, "init_batch_size": 5 * BATCH} | settings
    optim = {"name": "adam", "lr": 1e-3, "eps_inside_root": True}
    trees = [
        {"model": model, "norm": PRESETS[norm], "optim": optim, "trainer": settings, "seed": seed}
        for seed in range(members)
    ]
    draw = torch.Generator().manual_seed(0)
    dtype = torch.float64 if settings["precision"] == "float64" else torch.float32
    x = torch.rand(images, 3, 32, 32, generator=draw, dtype=dtype).to(device)
    split = Split(x, torch.randint(10, (images,), generator=draw).to(device))
    small = Split(split.x[:BATCH], split.y[:BATCH])
    trainer = Trainer(
        [parse(t) for t in trees], Dataset(split, small, small, 10), torch.device(device), Observer()
    )
    trainer._initialize()
    trainer.optimizer.set_epoch(0, 200)
    trainer.stack.train()
    return trainer


def advance(trainer: Trainer, first: int, last: int) -> Trainer:
    for batch in trainer.batches(1)[first:last]:
        trainer.update(batch)
    return trainer


def difference(a: Trainer, b: Trainer, start: Trainer) -> tuple[float, float]:
    """Of the first members' loss, and ``||moved a - moved b|| / ||moved b||``; infinite if noise differs."""
    for name, buffer in b.stack.buffers.items():
        if name.endswith("key") and not torch.equal(buffer[0].cpu(), a.stack.buffers[name][0].cpu()):
            return float("inf"), float("inf")
    losses = [trainer.totals[0, 0].item() for trainer in (a, b)]
    of_a, of_b, before = (
        torch.cat([p[0].detach().double().cpu().flatten() for p in t.stack.params.values()])
        for t in (a, b, start)
    )
    moved = ((of_a - of_b).norm() / (of_b - before).norm()).item()
    return abs(losses[0] - losses[1]) / abs(losses[1]), moved


def compare(name: str, norm: str, device: str, compiled: bool) -> list[tuple[str, float, float, bool]]:
    """What is compared, the two differences, and whether they are small enough."""
    model = {"name": name, **MODELS[name]}

    def make(device: str = device, members: int = 1, **settings: Any) -> Trainer:
        return trainer_of(model, norm, device, STEPS * BATCH, members, **settings)

    start = make("cpu", cuda_graph=False)
    on_cpu = advance(make("cpu", cuda_graph=False), 0, STEPS)
    eager = advance(make(cuda_graph=False), 0, STEPS)
    captured = advance(make(), 0, STEPS)
    stacked = advance(make(members=2), 0, STOP)
    stacked._select([0])
    advance(stacked, STOP, STEPS)
    half, resumed = advance(make(), 0, STOP), make()
    resumed.restore(half.state())
    resumed.optimizer.set_epoch(0, 200)
    resumed.stack.train()
    advance(resumed, STOP, STEPS)
    found = [
        ("device against CPU", eager, on_cpu, CLOSE),
        ("captured against eager", captured, eager, SAME),
        ("stack of 2, one dropped, against alone", stacked, eager, SAME),
        ("resumed against uninterrupted", resumed, eager, SAME),
    ]
    if compiled:
        found.append(("compiled against eager", advance(make(compile=True), 0, STEPS), eager, CLOSE))
    rows = [
        (what, *(d := difference(a, b, start)), d[0] < most[0] and d[1] < most[1])
        for what, a, b, most in found
    ]
    if device != "cpu" and captured._step.graph is None:
        rows.append(("a graph was captured", float("inf"), float("inf"), False))
    return rows


def cost(norm: str, compiled: bool, device: str, ready: Any, turn: Any, answers: Any) -> None:
    """Runs in a process of its own: start-up in seconds, ms a step alone and beside the others, MiB."""
    settings = {"precision": "bfloat16", "batch_size": 100, "init_batch_size": 500, "compile": compiled}
    configure_torch(TrainerConfig(precision="bfloat16"), torch.device(device))
    began = time.perf_counter()
    try:
        trainer = advance(trainer_of({"name": "convnet"}, norm, device, 50_000, **settings), 0, STOP)
        torch.cuda.synchronize()
        start = time.perf_counter() - began
        batches = trainer.batches(2)[:REPLAYS]

        def replay() -> float:
            begun = time.perf_counter()
            for batch in batches:
                trainer.update(batch)
            torch.cuda.synchronize()
            return (time.perf_counter() - begun) / REPLAYS * 1e3

        ready.wait()
        if not turn.acquire(timeout=PATIENCE):
            raise TimeoutError("another process ended amid its turn")
        try:
            replay()
            alone = replay()
        finally:
            turn.release()
        ready.wait()
        together = replay() if compiled else float("nan")
    except BaseException as error:
        ready.abort()
        answers.put((norm, compiled, f"{type(error).__name__}: {error}"))
        raise
    memory = torch.cuda.max_memory_allocated() >> 20
    answers.put((norm, compiled, (start, alone, together, memory)))


def costs(device: str) -> bool:
    """Print the table of costs; False if a process failed."""
    spawn = multiprocessing.get_context("spawn")
    cases = [(norm, compiled) for norm in TABLE for compiled in (False, True)]
    ready, turn, answers = spawn.Barrier(len(cases), timeout=PATIENCE), spawn.Lock(), spawn.Queue()
    processes = [spawn.Process(target=cost, args=(*case, device, ready, turn, answers)) for case in cases]
    for process in processes:
        process.start()
    found: dict[tuple[str, bool], Any] = dict.fromkeys(cases, "its process died")
    while any(process.is_alive() for process in processes) or not answers.empty():
        with contextlib.suppress(queue.Empty):
            norm, compiled, answer = answers.get(timeout=1)
            found[norm, compiled] = answer
    print(
        f"{'norm':32} {'step':9} {'start s':>8} {'ms':>7} {'together':>9} {'MiB':>6} {'200 epochs, min':>16}"
    )
    for (norm, compiled), answer in found.items():
        how = "compiled" if compiled else "eager"
        if isinstance(answer, str):
            print(f"{norm:32} {how:9} {answer}")
            continue
        start, alone, together, memory = answer
        minutes = (start + TABLE_STEPS * alone / 1e3) / 60
        print(f"{norm:32} {how:9} {start:8.1f} {alone:7.3f} {together:9.3f} {memory:6d} {minutes:8.1f} min")
    return not any(isinstance(answer, str) for answer in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--cost-only", action="store_true", help="compile and time, compare nothing")
    parser.add_argument("--no-cost", action="store_true", help="compare alone")
    options = parser.parse_args()
    try:
        pick_device(options.device)
    except UserError:
        parser.error(f"--device {options.device}: not available here; --device cpu compares without a GPU")
    if options.cost_only and (options.no_cost or options.device == "cpu"):
        parser.error("--cost-only: steps are timed on a GPU, and without --no-cost; nothing would be checked")
    bad = []
    for model in [] if options.cost_only else options.models:
        for norm in NORMS:
            compiled = model == "convnet" and options.device != "cpu"
            for what, loss, moved, fine in compare(model, norm, options.device, compiled):
                bad += [] if fine else [f"{model} {norm}: {what}"]
                mark = "ok " if fine else "BAD"
                print(f"{mark} {model:12} {norm:30} {what:40} loss {loss:.1e}, moved {moved:.1e}", flush=True)
    if options.device != "cpu" and not options.no_cost and not costs(options.device):
        bad.append("the cost of a step")
    print("NO GO: " + "; ".join(bad) if bad else "GO")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
