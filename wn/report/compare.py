"""A rerun against the committed rows: is each row of the table reproduced?

Kernels and thread counts change last digits, and where training is chaotic that changes a loss by about its
standard deviation over seeds; a changed method shifts all seeds to one side. So the criterion, fixed before
any rerun was measured, is an equivalence test on paired seeds. For a seed s

    d_s = mean over learning rates l of (ours[l, s] - committed[l, s]) / sd[l],

with the final validation loss (test loss where nothing is held out), sd[l] the committed standard deviation
over seeds, and l over the rates at which no committed seed diverged. The mean of d_s must lie, with its whole
95% Student interval, within 0.5 of 0, and the best learning rate must be the same or a neighbour in the grid.
Most learning rates are smooth, which gives the average its power and keeps the few chaotic ones from
deciding. The loss is compared, not the error, since it is continuous. The test asks for evidence of equality
(Schuirmann, 1987): an interval too wide to say "within" is not "reproduced".
"""

from __future__ import annotations

import numpy as np

from wn.report import statistics
from wn.report.collect import Rows
from wn.report.plan import Group, Plan
from wn.report.tables import best_of, sweep_of

MARGIN = 0.5
"""Committed standard deviations: half of what two seeds differ by."""

LEAST = 1e-5
"""Standard deviations are taken as at least this share of the loss: below it are the digits of float32."""


def closing_line(plan: Plan, ours: Rows, committed: Rows) -> list[str]:
    """One line on how many rows are reproduced, and which is not; none where nothing is committed."""
    if not committed.runs or not ours.runs:
        return []
    complete = [g for g in plan.groups if all(i in ours.runs and i in committed.runs for i in g.configs)]
    rest = len(plan.groups) - len(complete)
    missing = f"; {rest} of {len(plan.groups)} rows not complete, here or as committed" * bool(rest)
    if not complete:
        return [f"compared with the committed rows: not judged{missing}"]
    seeds = min(len(group.seeds) for group in complete)
    if seeds < 2:
        return [f"compared with the committed rows: not judged (n = {seeds}){missing}"]
    verdicts = {group.name: judge(group, ours, committed, plan.metric.key) for group in complete}
    refuted = [f"{name}: {why}" for name, (_, why) in verdicts.items() if why]
    if refuted:
        return [f"not reproduced: {len(refuted)} of {len(complete)} rows: {'; '.join(refuted)}{missing}"]
    name = max(verdicts, key=lambda name: float(np.nan_to_num(abs(verdicts[name][0].mean))))
    told = f"{_told(verdicts[name][0])} ({name})"
    return [f"reproduced: {len(complete)} rows of {len(complete)}, largest difference {told}{missing}"]


def judge(group: Group, ours: Rows, committed: Rows, key: str) -> tuple[statistics.Estimate, str]:
    """The difference of a complete row, and why it is not reproduced: empty where it is."""
    here, there = sweep_of(group, ours.runs, key), sweep_of(group, committed.runs, key)
    d = statistics.estimate(differences(group, ours, committed))
    best, expected = best_of(here), best_of(there)
    if (best is None) != (expected is None) or abs((best or 0) - (expected or 0)) > 1:
        lrs = ["none" if i is None else f"{here.lrs[i]:g}" for i in (best, expected)]
        return d, f"best lr {lrs[0]}, committed {lrs[1]}"
    within = not d.n or abs(d.mean) + d.half_width <= MARGIN
    return d, "" if within else f"difference {_told(d)}"


def differences(group: Group, ours: Rows, committed: Rows) -> statistics.Array:
    """d_s for every seed; infinite where a run diverged that did not; none where all rates diverge."""

    def losses(rows: Rows, lr: float) -> statistics.Array:
        runs = [rows.runs[group.ids[lr, seed]] for seed in group.seeds]
        return np.array([np.inf if run.get(name) is None else run[name] for run in runs], dtype=float)

    known = (committed.runs[i] for i in group.configs)
    held_out = any(run.get("valid_loss") is not None for run in known)
    name, terms = "valid_loss" if held_out else "test_loss", []
    for lr in group.lrs:
        here, there = losses(ours, lr), losses(committed, lr)
        if np.isfinite(there).all():  # no committed seed diverged
            sd = max(float(there.std(ddof=1)), LEAST * float(np.abs(there).mean()))
            terms.append((here - there) / sd)
    return np.mean(terms, axis=0) if terms else np.empty(0)


def _told(difference: statistics.Estimate) -> str:
    return f"{difference.mean:+.2f} ± {difference.half_width:.2f} sd"
