"""``python -m wn.compare NORM [KEY=VALUE ...]``: a norm's report card, beside no, batch, weight, layer norm.

NORM is a file that registers a norm (:mod:`wn.plugins`) or a preset's name. It is trained on four small
families of models (experiments/compare/) with several learning rates and three seeds, in five minutes on two
cores. The rows of the others are committed (results/compare/).
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wn import experiments
from wn.check import settings_of
from wn.config import Config, UserError
from wn.config.yaml_files import listed, parse_value
from wn.messages import module
from wn.records import Record, to_json, write_atomically
from wn.resources import configure_torch, resolve
from wn.run import RunFailed, raise_if_failed
from wn.stops import Preempted, tell, termination
from wn.sweep import train_sweep
from wn.trainer import Observer, Trainer

FAMILIES = ("convnet", "transformer", "mlp_vae", "mlp")
"""The costly ones are trained first, so that no core waits for them at the end."""

PLACES = ("plugins", "trainer.device", "data.root")
ALLOWED = re.compile(r"norm(\..+)?|optim\.(?!lr$).+|runs_dir|" + "|".join(PLACES))
"""What a comparison may change: all else is the families' own, their learning rates too."""

ROUNDS, STEPS, WARM_UP = 10, 2, 2
"""Of the step times: in each round every norm takes so many steps, of which the quickest counts; the first
rounds do not."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and write the page: 0, 1 if a run failed, 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.compare", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="NORM", help="my_norm.py, a preset's name, KEY=VALUE")
    parser.add_argument("--baselines", action="store_true", help="train the four others here too")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of " + ", ".join(FAMILIES))
    parser.add_argument(
        "--publish", action="store_true", help="put the four others' rows into results/compare/"
    )
    options = parser.parse_args(arguments)
    try:
        with termination():
            return compare(options.words, options.families.split(","), options.baselines, options.publish)
    except (UserError, RunFailed, Preempted, KeyboardInterrupt, OSError) as end:
        return tell(end)


def compare(words: Sequence[str], families: Sequence[str], baselines: bool, publish: bool) -> int:
    if publish and not any("=" not in word or word.startswith("norm=") for word in words):
        words = ["none", *words]  # of the four whose rows it publishes
    settings = settings_of(words)
    for key, value in settings.items():
        if not ALLOWED.fullmatch(key) or (key == "norm" and not isinstance(value, str)):
            raise UserError(f"{key}={value}: one norm and one optimiser; all else is the families' own")
    if unknown := set(families) - set(FAMILIES):
        raise UserError(f"--families {min(unknown)}: known are {', '.join(FAMILIES)}")
    runs_dir = Path(str(settings.pop("runs_dir", "runs"))) / "compare"
    name = " ".join(
        [settings["norm"], *(f"{k}={v}" for k, v in settings.items() if k not in ("norm", *PLACES))]
    )
    plans, notes = _plans(families, settings, runs_dir)
    untrained = [f for f, plan in plans.items() if {c.run_id for c in plan.others} - _committed(f)]
    if untrained and not (baselines or publish):
        print(f"no committed rows for {', '.join(untrained)}: the four others are trained as well")
    with_others = [*plans] if baselines or publish else untrained
    records = train_sweep(
        [c for f, plan in plans.items() for c in plan.own + plan.others * (f in with_others)]
    )
    for record in records:
        raise_if_failed(record)
    command = _command(words, families, baselines, publish)
    card: dict[str, Any] = {"name": name, "command": command, "notes": notes}
    card |= {"plugins": next(iter(plans.values())).own[0].plugins}
    print("step times, in turns")
    card["families"] = {family: plan.told() for family, plan in plans.items()}
    folder = runs_dir / re.sub(r"[^\w.=-]+", "_", name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "card.json", (to_json(card, indent=1) + "\n").encode())
    return make_page([str(folder), *(["--publish"] * publish)])


def _committed(family: str) -> set[str]:
    """The run_ids whose rows are committed."""
    path = experiments.FOLDER.parent / f"results/compare/{family}/runs.csv"
    return {line[:12] for line in path.read_text(encoding="utf-8").splitlines()} if path.exists() else set()


def _command(words: Sequence[str], families: Sequence[str], baselines: bool, publish: bool) -> str:
    """The command that another machine needs, files without the folders of this one."""
    kept = [word for word in words if not word.startswith(("runs_dir=", "data.root="))]
    shown = [_without_folders(word) for word in kept]
    shown += [f"--families {','.join(families)}"] * ({*families} != {*FAMILIES})
    shown += ["--publish"] if publish else ["--baselines"] * baselines
    return " ".join(["python -m wn.compare", *shown])


def _without_folders(word: str) -> str:
    if word.startswith("plugins="):
        files = [Path(file).name for file in listed(parse_value(word))]
        return f"plugins={files[0]}" if len(files) == 1 else f"plugins=[{','.join(files)}]"
    return word if "=" in word else Path(word).name


def make_page(arguments: Sequence[str]) -> int:
    """Run ``python -m wn.report.card``, as a process: training imports neither pandas nor matplotlib."""
    return module("wn.report.card", *arguments)


def _plans(
    families: Sequence[str], settings: dict[str, Any], runs_dir: Path
) -> tuple[dict[str, _Family], list[str]]:
    """The families that can be trained here, and why the one whose images may be missing cannot."""
    plans, notes, why = {}, [], ""
    for family in [family for family in FAMILIES if family in families]:
        places = {"runs_dir": str(runs_dir), "tracking.mode": "disabled"}
        try:
            plans[family] = _Family(family, settings, places)
        except UserError as error:
            if family != "convnet" or not str(error).startswith("data."):
                raise
            notes.append("The ConvNet is left out: its images were not at hand.")  # the page names no folder
            why = f"The ConvNet is left out: {error}."
            print(why)
    if not plans:
        raise UserError(why)
    return plans, notes


class _Family:
    """One family: the runs of the norm in question and of the four others."""

    def __init__(self, family: str, settings: dict[str, Any], places: dict[str, Any]) -> None:
        experiment = experiments.load(f"compare/{family}")
        grid = {**experiment.grid, "norm": [settings["norm"]]}
        mine = experiment.model_copy(update={"grid": grid})
        where = (
            {key: settings[key] for key in PLACES[1:] if key in settings} | places | {"data.download": False}
        )
        changes = {key: value for key, value in settings.items() if key != "norm"}
        self.own = [run.config for run in mine.runs({**changes, **where})]
        self.others = [run.config for run in experiment.runs(where)]
        resolve(self.own[0])  # the user's mistakes, and missing images, before anything is trained

    def told(self) -> dict[str, Any]:
        """For the page: the run_ids of the norm in question; step times in multiples of plain weights'."""
        own = [config.run_id for config in self.own]
        norms = {config.norm.label: config for config in self.others}
        times = step_times([self.own[0], *norms.values()])
        plain = times[1 + list(norms).index("none")]
        ratios = [[a / b for a, b in zip(one, plain, strict=True)] for one in times]
        labels = ["", *norms]  # the first is the norm in question
        return {
            "runs": own,
            "step_ratios": dict(zip(labels, ratios, strict=True)),
            "plain_ms": 1e3 * statistics.median(plain),
            "device": Record.of(self.own[0]).content["provenance"]["device"],
        }


def step_times(configs: Sequence[Config]) -> list[list[float]]:
    """Seconds that a step of each run takes alone, in every round, in which all take their turn."""
    device, dataset = resolve(configs[0])
    configure_torch(configs[0].trainer, device)
    trainers = []
    for config in configs:
        trainer = Trainer([config], dataset, device, Observer())
        trainer.stack.train()
        trainers.append((trainer, trainer.batches(1)[0]))
    times: list[list[float]] = [[] for _ in trainers]
    for turn in range(WARM_UP + ROUNDS):
        for own, (trainer, batch) in zip(times, trainers, strict=True):
            quickest = math.inf  # what else runs on the machine only adds to a step's time
            for _ in range(STEPS):
                started = time.perf_counter()
                trainer.update(batch)
                trainer.totals.sum().item()  # waits for a GPU
                quickest = min(quickest, time.perf_counter() - started)
            if turn >= WARM_UP:
                own.append(quickest)
    return times


if __name__ == "__main__":
    sys.exit(main())
