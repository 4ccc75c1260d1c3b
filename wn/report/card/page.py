"""The page of a report card: what stands out, a figure, a table per family, how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wn.records import write_atomically
from wn.report.card.families import FAMILIES, Family
from wn.report.card.figures import metric_figure, trajectory_figure
from wn.report.card.words import ALPHA, standing_out
from wn.report.columns import Column, Row, in_markdown, interval, missing, number, table
from wn.report.figures import house_style, save


def columns_of(family: Family) -> list[Column]:
    metric = family.plan.metric
    heading = next(iter(metric.widths.values()))[0]

    def apart(line: Row) -> str:
        return _apart(line) + ("" if missing(line["p"]) else f" (p {line['p']:.3f})")

    def width(line: Row) -> str:
        return "≥ " * bool(line.get("width_open")) + interval("width", 2)(line)

    def rate(line: Row) -> str:
        return number("lr", "g")(line) + " (edge)" * bool(line.get("edge"))

    def norm(line: Row) -> str:
        return f"**{line['norm']}**" if line is family.table[0] else str(line["norm"])

    return [
        Column("norm", "norm", norm, known=True),
        Column("lr", "best lr", rate),
        Column(metric.test, metric.heading, interval(metric.test, 2)),
        Column("difference", f"{family.table[0]['norm']} less this", apart),
        Column("sensitivity", "S (nats)", interval("sensitivity", 2)),
        Column("width", f"{heading} (decades)", width),
        Column("largest_stable_lr", "largest lr without NaN", number("largest_stable_lr", "g")),
        Column("diverged", "diverged", lambda line: f"{line['diverged']}/{line['runs']}", known=True),
        Column("step", "step / plain", interval("step", 2)),
    ]


HOW_TO_READ = """\
- **best lr**: chosen on validation images; all norms have the same learning rates and seeds. *(edge)*: the
  first or last of them, so a better one may lie beyond.
- **±**: half the 95% Student interval over seeds. **less this**: difference of the test metric, paired by
  seed, each norm at its own best rate. An error is better the lower, an ELBO the higher. **p**: paired t
  test, by Holm's correction over a table's comparisons; so is what is said of S.
- **S**: mean regret over the learning rates, in nats; a diverged run counts at its loss before training.
  Lower is better.
- **width**: decades of learning rate at which the validation metric is near its best, the mean over seeds
  ([definition](../../../docs/TABLES.md)); **≥**: an end of the grid is among them.
- **step / plain**: time of a training step in multiples of that with plain weights, of one run alone.
"""


def write(card: dict[str, Any], families: list[Family], folder: Path) -> None:
    """Write ``page.md`` and its figures."""
    with house_style():
        save(metric_figure(families), folder / "metric.svg")
        save(trajectory_figure(families), folder / "trajectories.svg")
    said = [*standing_out(families), *card["notes"]]
    parts = [
        f"# {card['name']}: report card",
        _asked(card["name"], families),
        "\n".join(f"- {sentence}" for sentence in said),
        _summary(families),
        "![Final validation metric against learning rate](metric.svg)",
    ]
    for family in families:
        assert family.plan.experiment
        parts += [f"## {family.plan.experiment.title}", in_markdown(table(columns_of(family), family.table))]
    parts += ["## How to read it", HOW_TO_READ.rstrip()]
    parts += ["![Norm, gain and learning rate of the direction by epoch](trajectories.svg)"]
    parts += ["\n".join(_made(card, families))]
    write_atomically(folder / "page.md", ("\n\n".join(parts) + "\n").encode("utf-8"))
    print(*said, folder / "page.md", sep="\n")


def _asked(name: str, families: list[Family]) -> str:
    others = ", ".join(dict.fromkeys(group.name for family in families for group in family.plan.groups[1:]))
    seeds = len(families[0].plan.groups[0].seeds)
    how = f"each is trained with the same learning rates, and with {seeds} seeds at every rate"
    return f"`{name}` beside {others}, on small models: {how}. What stands out:"


def _summary(families: list[Family]) -> str:
    """A row per family: the difference to each of the others, in bold where it is significant."""
    others = list(dict.fromkeys(line["norm"] for family in families for line in family.table[1:]))
    rows = [["difference, at the best lr of each, to", *others]]
    for family in families:
        lines = {line["norm"]: line for line in family.table[1:]}
        what = f"{FAMILIES[family.name]}, {family.plan.metric.heading}"
        rows.append([what, *(_apart(lines.get(norm)) for norm in others)])
    words = (
        "An error is better the lower, an ELBO the higher. Bold: significant by Holm's correction, which the "
        "intervals are without; with three seeds, no difference found is not no difference."
    )
    return f"{in_markdown(rows)}\n\n{words}"


def _apart(line: Row | None) -> str:
    if line is None or not line["difference"].n:
        return "–"
    text = f"{line['difference'].mean:+.2f} ± {line['difference'].half_width:.2f}"
    return f"**{text}**" if line["p"] < ALPHA else text


def _made(card: dict[str, Any], families: list[Family]) -> list[str]:
    """How it was made, and whether the others' rows are of another processor."""
    took = sum(f.rows.runs["seconds"].reindex([*f.plan.groups[0].configs]).sum() for f in families) / 60
    lines = [f"Made by `{card['command']}`, which trains for {took:.1f} minutes of a core."]
    lines += [f"Own code: `{name}`, SHA-256 `{digest}`." for name, digest in card["plugins"].items()]
    here = {family.told["device"].partition(" (")[0] for family in families}
    there = {str(d).partition(" (")[0] for f in families for d in f.rows.runs["device"].dropna()} - here
    if there:
        lines.append(
            f"The others' rows were made on {', '.join(sorted(there))}, these on {', '.join(sorted(here))}: "
            "last digits differ, and so may runs at unstable rates. `--baselines` trains them here."
        )
    plain = ", ".join(f"{FAMILIES[f.name]} {f.told['plain_ms']:.1f} ms" for f in families)
    return [*lines, f"A step with plain weights on {', '.join(sorted(here))}: {plain}."]
