"""The page of verdicts, ``results/claims/README.md``, and the few lines of it on the project's front page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from wn.config import UserError
from wn.records import write_atomically
from wn.report.claims import figures
from wn.report.claims.collect import NOT_COUNTED, VOID, Found, controls, gather, publish
from wn.report.claims.verdicts import Judged
from wn.report.columns import aligned, in_markdown
from wn.report.page import renewed

WORDS = {
    "exact": "an identity, held to rounding",
    "confirmed": "the whole interval beyond the threshold, in two families of models (of cost: in one)",
    "confirmed with limits": "so in one family, half of the conditions, by a weaker threshold, or by a note",
    "depends": "confirmed in some conditions and refuted in others, which are named",
    "refuted": "the whole interval on the other side, in two independent measurements",
    "open": "none of these: between thresholds, not significant (Holm), measured once, or by a note",
    "toy": "an experiment of section 5 at smaller scale; +: for the claim, −: against it, 0: undecided",
    "not tested": "no rows yet",
}

DECIMALS = 6
SHORTEST = 3  # seconds: rounded to tenths of a minute anything shorter is none
AGAINST = ("refuted", "toy −")


def report(runs_dir: Path, results_dir: Path, to_results: bool) -> str:
    """The table of verdicts for a terminal; with ``to_results`` rows, figures and page are written there.

    Raises:
        UserError: rows to be written do not count.
    """
    found = gather(runs_dir, results_dir)
    if to_results:
        if void := [one.claim.id for one in found if one.order == VOID]:
            raise UserError(f"{', '.join(void)}: {NOT_COUNTED}; nothing is published")
        folder = results_dir / "claims"
        publish(found, folder)
        drawn = figures.draw(found, folder)
        write_atomically(folder / "README.md", page(found, drawn).encode("utf-8"))
        _renew_front_page(found, results_dir.parent / "README.md")
    rows = [["claim", "verdict", "measured", "minutes"]]
    rows += [[one.claim.id, one.word, _first(one), f"{one.seconds / 60:.1f}"] for one in found]
    return "\n".join([aligned(rows), "", counts(found)])


def counts(found: Sequence[Found]) -> str:
    """How many claims have which verdict, the paper's and ours; for how many the paper shows data."""
    again = [one for one in found if one.claim.again]
    ours = [one for one in found if one.notes.ours and not one.claim.again]
    papers = [one for one in found if not (one.notes.ours or one.claim.again)]
    shown = sum(one.notes.data for one in papers)
    return (
        f"{len(papers)} statements of the paper: {_verdicts(papers)}."
        f" The paper shows data for {shown} of them."
        + f" {len(ours)} statements of ours beside them: {_verdicts(ours)}." * bool(ours)
        + f" {len(again)} tests repeat one in another setting: {_verdicts(again)}." * bool(again)
    )


def _verdicts(found: Sequence[Found]) -> str:
    words = Counter(one.word for one in found)
    toy = {sign: words.pop(f"toy {sign}", 0) for sign in "+−0"}
    words["toy"] = sum(toy.values())
    signs = f" ({toy['+']} for, {toy['−']} against, {toy['0']} undecided)"
    return ", ".join(f"{words[word]} {word}{signs * (word == 'toy')}" for word in WORDS if words[word])


def page(found: Sequence[Found], drawn: Mapping[str, str]) -> str:
    parts = [
        "# The claims of the paper, each with a verdict",
        f"**{counts(found)}**",
        "Each claim has a criterion that was committed before its rows were measured, or "
        "says what was known of them ([experiments/claims/](../../experiments/claims)); the verdict is "
        "computed from the rows beside this page. An interval is Student's over seeds (of step times: over "
        "blocks of one process), of 95%, or of 90% where equivalence is tested; a verdict takes more, by "
        "Holm's correction over its tests. *Ours*: a statement that the paper does not make; it "
        "follows from the paper's, or contradicts them. "
        "Errors and training curves of section 5.1 at full width are [elsewhere](../README.md).",
        "\n".join(f"- *{word}*: {meaning}" for word, meaning in WORDS.items()),
        in_markdown(_summary(found)),
        "```\npython -m wn.claims          # measures all but the long ones\n"
        "python -m wn.claims --long   # the long ones too\n"
        "python -m wn.claims B3       # one claim; B or growth: a family\n"
        "python -m wn.report claims   # verdicts of what was measured\n```",
        *(f"![{title}]({name}.svg)" for name, title in drawn.items()),
        *(_section(one) for one in found),
        "## To challenge a verdict\n\nOpen an issue with rows, or with a criterion that tests the same words "
        "better, and the script that makes them. A criterion that changes voids its rows: they are measured "
        "again.",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(found: Sequence[Found]) -> list[list[str]]:
    head = ["", "§", "claim", "measured", "verdict"]
    body = [
        [
            f"[{one.claim.id}](#{one.claim.id.lower()})",
            one.claim.section,
            one.claim.words + " (ours)" * (one.notes.ours and "(ours" not in one.claim.words),
            _first(one),
            one.word,
        ]
        for one in found
    ]
    return [head, *body]


def _first(one: Found) -> str:
    """The quantity that refutes, or the first, from its lowest condition to its highest; else why none is."""
    if not one.verdict.judged:
        return one.verdict.why or "–"
    every = one.verdict.judged
    against = [judged for judged in every if judged.verdict == "refuted" and one.word in AGAINST]
    mine = [judged for judged in every if judged.quantity == [*against, *every][0].quantity]
    ends = [end(mine, key=lambda judged: judged.mean) for end in (min, max)]
    told = [f"{_estimate(judged)} ({judged.condition})" for judged in dict.fromkeys(ends)]
    return f"{mine[0].quantity}: " + " to ".join(told)


def _estimate(judged: Judged) -> str:
    if math.isnan(judged.half_width):
        return f"{judged.mean:.2g}"
    digits = max(0, 1 - math.floor(math.log10(judged.half_width or 0.01)))
    if digits > DECIMALS and abs(judged.mean) < 1e-5:
        return f"{judged.mean:.2g} ± {judged.half_width:.1g}"
    digits = min(digits, DECIMALS)
    return f"{judged.mean:.{digits}f} ± {judged.half_width:.{digits}f}"


def _section(one: Found) -> str:
    claim = one.claim
    why = one.lowered.why if one.lowered else one.verdict.why
    lines = [
        f"### {claim.id}\n\n**{claim.words}** (section {claim.section}; the paper: {claim.paper})",
        f"Verdict: **{one.word}**" + f" ({why})" * bool(why) + ".",
        f"Design: {claim.design} Control: {claim.control}",
    ]
    if one.verdict.judged:
        lines.append("\n".join(f"- *{name}*: {quantity.what}" for name, quantity in claim.quantities.items()))
        lines.append(in_markdown(_judged(one)))
    if len(compared := controls(one.rows)):
        lines.append(in_markdown(_compared(one, compared)))
    remarks = {
        "Known when the criterion was written": claim.known,
        "Literature": one.notes.literature,
        "Beyond what was tested": one.notes.beyond,
        "What would change it": one.notes.change,
    }
    lines += [f"{head}: {text}" for head, text in remarks.items() if text]
    if len(one.rows):
        commits = ", ".join(sorted({commit[:10] for commit in one.rows["commit"].dropna()})) or "unknown"
        device = ", ".join(sorted(one.rows["device"].unique()))
        clock = f"{one.seconds / 60:.1f} minutes by the clock"
        if one.seconds < SHORTEST:
            clock = "within seconds, or from runs that are recorded or another claim has trained"
        order = one.order + ", after some of their runs" * (claim.late or one.notes.late)
        origin = f"`python -m wn.claims {claim.id}`: {clock}, {device}, commit {commits} ({order})"
        lines.append(f"{origin}, [rows]({claim.id}.csv).")
    return "\n\n".join(lines)


def _judged(one: Found) -> list[list[str]]:
    """A row per condition and quantity, with the thresholds that it was held against."""
    rows = [["condition", "quantity", "measured", "n", "confirmed", "refuted", "verdict"]]
    for judged in one.verdict.judged:
        quantity = one.claim.quantities[judged.quantity]
        sign = {"above": "> ", "below": "< ", "inside": "in "}[quantity.rule]
        other = {"above": "< ", "below": "> ", "inside": "outside "}[quantity.rule]
        confirmed = sign + _threshold(quantity.confirmed)
        if quantity.limits is not None:
            confirmed += f" (limits: {sign}{quantity.limits:g})"
        refuted = "–" if quantity.refuted is None else other + _threshold(quantity.refuted)
        measured = _estimate(judged)
        rows.append(
            [judged.condition, judged.quantity, measured, str(judged.n), confirmed, refuted, judged.verdict]
        )
    return rows


def _compared(one: Found, means: pd.DataFrame) -> list[list[str]]:
    """A row per control and a column per condition that has one."""
    cells = {
        (row.quantity, row.condition): "diverged" if math.isnan(row.value) else f"{row.value:.3g}"
        for row in means.itertuples()
    }
    quantities, present = ([*dict.fromkeys(names)] for names in zip(*cells, strict=True))
    conditions = sorted(present, key=[*one.claim.conditions, *present].index)
    rows = [["control (mean over seeds)", *conditions]]
    for quantity in quantities:
        values = [cells.get((quantity, condition), "–") for condition in conditions]
        rows.append([str(quantity).removeprefix("control "), *values])
    return rows


def _threshold(value: float | tuple[float, float]) -> str:
    return f"{value:g}" if isinstance(value, float) else f"[{value[0]:g}, {value[1]:g}]"


def _renew_front_page(found: Sequence[Found], readme: Path) -> None:
    """The verdicts between the markers of the project's README, where it has them."""
    before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    after = renewed(before, "claims", f"**{counts(found)}**\n")
    if after != before:
        write_atomically(readme, after.encode("utf-8"))
