"""A rerun against the committed rows: is each row of the table reproduced?

Kernels and thread counts change last digits, and where training is chaotic that changes a loss by about its
standard deviation over seeds; a changed method shifts all seeds to one side. So the criteria, fixed before
any rerun was measured, are equivalence tests on paired seeds: an interval too wide to say "within" is not
"reproduced" (Schuirmann, 1987). Compared are final validation losses (test losses where nothing is held out)
at the learning rates l at which no committed seed diverged. With its whole 95% Student interval must lie

1. within 0.5 of 0 the mean over seeds s of d_s = mean over l of (ours[l, s] - committed[l, s]) / sd[l], with
   the committed standard deviation over seeds. Most rates are smooth, which gives the average its power.
2. within 1% of 0 the mean over seeds of r_s = mean over l of ours[l, s] / committed[l, s] - 1 over the rates
   of at most a tenth of the committed best one, where there are two or more. Training is smooth there:
   kernels differ by 1e-7 relative, which it amplifies by less than 1e3. 1% is a hundred times that, and a
   third of what 10% in the learning rate does to an under-trained net, whose loss has a slope
   d log loss / d log lr of about 0.3. Seeds differ by more than that, so the first test may not notice.

Besides, the best learning rate must be the same or a neighbour in the grid.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from wn.report import statistics
from wn.report.collect import Rows
from wn.report.plan import Group, Plan
from wn.report.statistics import Array, Estimate
from wn.report.tables import grid, sweep_of

MARGIN, SMOOTH_MARGIN, SMOOTH = 0.5, 0.01, 0.1
LEAST = 1e-5
"""Standard deviations are taken as at least this share of the loss: below it are the digits of float32."""


def closing_line(plan: Plan, ours: Rows, committed: Rows) -> list[str]:
    """One line on how many rows are reproduced, and which is not; none where nothing is committed."""
    here, there = ours.runs, committed.runs
    if here.empty or there.empty:
        return []
    both = set(here.index) & set(there.index)
    complete = [group for group in plan.groups if set(group.configs) <= both]
    rest = len(plan.groups) - len(complete)
    missing = f"; {rest} of {len(plan.groups)} rows not complete, here or as committed" * bool(rest)
    seeds = min((len(group.seeds) for group in complete), default=0)
    if seeds < 2:
        few = f" (n = {seeds})" * bool(seeds)
        return [f"compared with the committed rows: not judged{few}{missing}"]
    verdicts = {group.name: judge(group, here, there, plan.metric.key) for group in complete}
    if blind := [name for name, (d, why) in verdicts.items() if not d.n and not why]:
        missing += f"; not judged, as at every rate a committed seed diverged: {', '.join(blind)}"
    judged = {name: found for name, found in verdicts.items() if name not in blind}
    refuted = [f"{name}: {why}" for name, (_, why) in judged.items() if why]
    if refuted:
        return [f"not reproduced: {len(refuted)} of {len(judged)} rows: {'; '.join(refuted)}{missing}"]
    if not judged:
        return [f"compared with the committed rows: none is judged{missing}"]
    name = max(judged, key=lambda name: abs(judged[name][0].mean))
    told = f"{_told(judged[name][0])} ({name})"
    return [f"reproduced: {len(judged)} rows of {len(judged)}, largest difference {told}{missing}"]


def judge(group: Group, ours: pd.DataFrame, committed: pd.DataFrame, key: str) -> tuple[Estimate, str]:
    """The difference d of a complete row, and why it is not reproduced: empty where it is."""
    best, expected = (statistics.best_lr(sweep_of(group, runs, key)) for runs in (ours, committed))
    d, r = map(statistics.estimate, differences(group, ours, committed, expected))
    if (best is None) != (expected is None) or abs((best or 0) - (expected or 0)) > 1:
        lrs = ["none" if i is None else f"{group.lrs[i]:g}" for i in (best, expected)]
        return d, f"best lr {lrs[0]}, committed {lrs[1]}"
    if not _within(d, MARGIN):
        return d, f"difference {_told(d)}"
    smooth = f"difference {100 * r.mean:+.1f} ± {100 * r.half_width:.1f}% at small learning rates"
    return d, "" if _within(r, SMOOTH_MARGIN) else smooth


def differences(
    group: Group, ours: pd.DataFrame, committed: pd.DataFrame, best: int | None
) -> tuple[Array, Array]:
    """d_s and r_s of every seed: infinite where a run diverged that did not, none where no rate counts."""
    name = "valid_loss" if grid(group, committed, "valid_loss").notna().any(axis=None) else "test_loss"
    here, there = (grid(group, runs, name).fillna(np.inf).to_numpy(float) for runs in (ours, committed))
    stable = np.isfinite(there).all(axis=1)  # no committed seed diverged
    here, there, lrs = here[stable], there[stable], np.array(group.lrs)[stable]
    sd = np.maximum(there.std(axis=1, ddof=1), LEAST * np.abs(there).mean(axis=1))
    smooth = lrs <= SMOOTH * (1 + 1e-9) * (0 if best is None else group.lrs[best])
    d, r = (here - there) / sd[:, None], (here[smooth] - there[smooth]) / np.abs(there[smooth])
    nothing = np.empty(0)
    return (d.mean(axis=0) if len(d) else nothing), (r.mean(axis=0) if len(r) > 1 else nothing)


def _within(difference: Estimate, margin: float) -> bool:
    return not difference.n or abs(difference.mean) + difference.half_width <= margin


def _told(difference: Estimate) -> str:
    return f"{difference.mean:+.2f} ± {difference.half_width:.2f} sd"
