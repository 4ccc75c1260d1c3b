"""Rows of the claims: from what was measured here, or as they are committed, and whether they count.

The rows of a claim count if each commit that measured some holds its criterion as it is now, without changes
beside it: then the criterion is older than the rows. Where no history tells, the order is *unverified*.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from wn.claims import criteria
from wn.claims.criteria import Claim
from wn.claims.rows import Measured, read
from wn.config import UserError
from wn.provenance import ROOT, ask_git, is_checkout
from wn.report.claims.verdicts import Verdict, judge
from wn.report.collect import read_csv, write_csv
from wn.report.statistics import Array
from wn.report.status import damaged

COLUMNS = ["part", "condition", "quantity", "seed", "x", "value"]
ORIGIN = ["criterion", "commit", "dirty", "device", "torch", "seconds"]
NUMBERS = {"seed": int, "x": float, "value": float}

STRENGTH = {"open": 1, "confirmed with limits": 2, "refuted": 2, "depends": 2, "confirmed": 3}
"""What a note may lower to what: never a refutation to a confirmation, nor what is not tested."""

VERIFIED, UNVERIFIED, VOID = "criterion before rows", "order unverified", "void"
NOT_COUNTED = "rows of uncommitted code, or older than the criterion, do not count"


class Found(NamedTuple):
    """A claim, the rows that count, none where they are void, and what they come to."""

    claim: Claim
    notes: criteria.Notes
    rows: pd.DataFrame
    order: str
    verdict: Verdict

    @property
    def word(self) -> str:
        """The verdict as the page has it: lowered where a note says so, and *toy* in small."""
        word = self.lowered.to if self.lowered else self.verdict.word
        signs = {"confirmed": "+", "confirmed with limits": "+", "refuted": "−", "open": "0", "depends": "0"}
        if self.claim.type == "experiment" and word in signs:
            return f"toy {signs[word]}"
        return word

    @property
    def lowered(self) -> criteria.Lower | None:
        """The note that lowers it, if it does; what is not tested, or as weak, stays as it is."""
        lower = self.notes.lower
        return lower if lower and STRENGTH.get(self.verdict.word, 0) > STRENGTH[lower.to] else None

    @property
    def seconds(self) -> float:
        return float(self.rows.drop_duplicates("part")["seconds"].sum()) if len(self.rows) else 0.0


def gather(runs_dir: Path, results_dir: Path) -> list[Found]:
    """Every claim with its rows: what was measured here in place of what is committed, part by part."""
    return [of_claim(name, runs_dir, results_dir) for name in criteria.ids()]


def of_claim(name: str, runs_dir: Path, results_dir: Path) -> Found:
    claim, current = criteria.load(name), criteria.digest_of(name)
    measured = {path.stem: read(path) for path in sorted((runs_dir / "claims" / name).glob("*.json"))}
    mine = {part: found for part, found in measured.items() if found and found.criterion == current}
    parts = [_frame(part, found) for part, found in mine.items() if found.rows]
    committed = results_dir / "claims" / f"{name}.csv"
    if committed.exists():
        old = _committed(committed)
        parts.append(old[~old["part"].isin(list(mine))])
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS + ORIGIN)
    kept = rows[rows["criterion"] == current].sort_values(COLUMNS[:4], kind="stable")
    order = VOID if len(rows) and kept.empty else _order(name, kept)
    rows = kept.iloc[:0] if order == VOID else kept
    verdict = judge(claim, values(claim, rows))
    verdict = verdict._replace(why=NOT_COUNTED) if order == VOID else verdict
    return Found(claim, criteria.notes(name), rows, order, verdict)


def _frame(part: str, measured: Measured) -> pd.DataFrame:
    """A part's rows as they are committed and read again: the page is of these, before and after."""
    frame = pd.DataFrame(measured.rows).reindex(columns=COLUMNS[1:]).astype(NUMBERS)
    frame["value"] = [float(f"{value:.7g}") for value in frame["value"]]
    frame.insert(0, "part", part)
    dirty = None if measured.dirty is None else str(measured.dirty)
    origin = {**measured.model_dump(include=set(ORIGIN)), "dirty": dirty}
    return frame.assign(**{key: origin[key] for key in ORIGIN})


def _committed(path: Path) -> pd.DataFrame:
    """Rows as they were written.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return read_csv(path, "criterion").astype({**NUMBERS, "seconds": float})[COLUMNS + ORIGIN]
    except (ValueError, LookupError):
        raise damaged(path) from None


def values(claim: Claim, rows: pd.DataFrame) -> dict[str, dict[str, Array]]:
    """What is judged: condition -> quantity -> a value per seed.

    Raises:
        UserError: a seed counts twice, as where a part was renamed and both are there.
    """
    found: dict[str, dict[str, Array]] = {}
    judged = rows[rows["quantity"].isin(list(claim.quantities))]
    for (condition, quantity), group in judged.groupby(["condition", "quantity"], sort=False):
        if group["seed"].duplicated().any():
            parts = " and ".join(sorted(set(group["part"])))
            where = f"delete what is old in runs/claims/{claim.id}/ or results/claims/{claim.id}.csv"
            raise UserError(f"{claim.id}, {condition}: a seed twice, in {parts}; {where}")
        ordered = group.sort_values("seed")["value"].to_numpy(dtype=float)
        found.setdefault(str(condition), {})[str(quantity)] = np.asarray(ordered)
    return found


def controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each quantity whose name begins with ``control``; NaN where a seed diverged."""
    mine = rows[rows["quantity"].str.startswith("control ")]
    groups = mine.groupby(["condition", "quantity"], sort=False, as_index=False)["value"]
    return groups.agg(lambda values: values.mean(skipna=False))


def _order(name: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return VERIFIED
    if rows["dirty"].astype(str).eq("True").any():
        return VOID
    digests = {_criterion_at(str(commit), name) for commit in rows["commit"].fillna("").unique()}
    if digests - {None, criteria.digest_of(name)}:
        return VOID
    return UNVERIFIED if None in digests else VERIFIED


@functools.cache
def _criterion_at(commit: str, name: str) -> str | None:
    """What names the criterion at a commit: empty where the commit has none, None without history."""
    if not commit or not is_checkout(ROOT):
        return None
    if ask_git(ROOT, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        return None  # a shallow clone, or another history
    shown = ask_git(ROOT, "show", f"{commit}:experiments/claims/{name}.yaml")
    return "" if shown is None else criteria.digest(shown)


def publish(found: list[Found], folder: Path) -> None:
    """Write each claim's rows as ``ID.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        path = folder / f"{one.claim.id}.csv"
        if len(one.rows):
            write_csv(path, one.rows[COLUMNS + ORIGIN])
        else:
            path.unlink(missing_ok=True)
