"""The other charts of a page: metrics by epoch, and what each layer did by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from wn.records import to_json
from wn.report.charts import CROSS, HIDDEN, SHORT, SHOWN, WIDTH, Spec, layer, looks_of, number, tooltip
from wn.report.collect import Rows
from wn.report.curves import LABELS, PUBLISHED, TICKS, curves_of, extent_by_epoch
from wn.report.figures import TRAJECTORIES, extent_of, has_effective_lr
from wn.report.plan import Plan

OF_RUN: Spec = {"data": {"name": "runs"}, "key": "run_id", "fields": ["row", "lr", "seed", "status"]}
JOINED: Spec = {"lookup": "run_id", "from": OF_RUN}
WHOLE: Spec = {"tickMinStep": 1, "format": "d"}  # of an axis of epochs


def by_epoch(plan: Plan, rows: Rows, name: str) -> Spec:
    """A metric: every seed thin, a row's mean at its learning rate, the published curve broad and pale."""
    title, looks, found = LABELS[name], looks_of(plan), curves_of(plan, rows, name)
    theirs = paper(plan) if name in PUBLISHED else []
    extent = [np.stack([epochs, side], 1) for _, epochs, v in found for side in (v.min(1), v.max(1))]
    extent += [np.array([[point["epoch"], point["value"]]]) for point in theirs]
    last = max([epochs[-1] for _, epochs, _ in found] or [point["epoch"] for point in theirs] or [1.0])
    limits = extent_by_epoch(name, np.concatenate([np.empty((0, 2)), *extent]), last)
    scale: Spec = {"domain": list(limits)} if limits else {}
    axis: Spec = {"title": title, "labelExpr": SHORT}
    rates = to_json({g.name: [line.lr for line, *_ in found if line.group is g] for g in plan.groups})
    offset = float(plan.metric.shown(name, 0.0))
    value = f"{float(plan.metric.shown(name, 1.0)) - offset} * datum.value + {offset}"
    if name.endswith("error"):  # one of zero is drawn at the first tick
        scale, axis, value = (
            scale | {"type": "log"},
            axis | {"values": list(TICKS)},
            f"max({value}, {TICKS[0]})",
        )
    of = {"row": "row", "lr": "learning rate", "epoch": "epoch"}
    one = tooltip(**of, shown=title, seed="seed", run_id="run")
    mean = tooltip(**of, **{name: f"{title}, mean", "runs": "seeds"})
    x = number("epoch", {"domain": [0, last]}, {"title": "epoch", **WHOLE})
    y, style = number("shown", scale, axis), {"color": looks["color"], "strokeDash": looks["strokeDash"]}
    finished = [
        {"filter": f"datum.name === '{name}'"},
        JOINED,
        {"filter": f"datum.status === 'finished' && indexof(({rates})[datum.row], datum.lr) >= 0"},
        {"calculate": value, "as": "shown"},
    ]
    seed = {"x": x, "y": y, **style, "detail": {"field": "run_id"}, "tooltip": one}
    line = {"x": x, "y": y | {"field": name}, **style, "detail": {"field": "line"}, "tooltip": mean}
    broad = {"x": x, "y": y | {"field": "value"}, "color": looks["color"]}
    known: list[Spec] = [{"filter": f"isValid(datum['{name}'])"}]
    if name.endswith("error"):
        known.append({"calculate": f"max(datum['{name}'], {TICKS[0]})", "as": name})
    layers = [
        layer("paper", [], "line", broad, strokeWidth=5, opacity=0.25),
        layer("curves", finished, "line", seed, strokeWidth=1, opacity=0.4, point="transparent"),
        layer("points", known, "line", line, strokeWidth=2.2),
    ]
    described = f"{title} against the epoch, for {', '.join(group.name for group in plan.groups)}"
    layers = layers if theirs else layers[1:]
    return {"description": described, "params": [HIDDEN], "width": WIDTH, "height": 400, "layer": layers}


def paper(plan: Plan) -> list[dict[str, Any]]:
    """The points of the published curve of each row."""
    theirs = plan.published
    names = [group.name for group in plan.groups if group.name in theirs]
    points = ((name, point) for name in names for point in theirs[name] if point.epoch > 0)
    return [{"row": name, "epoch": point.epoch, "value": point.value} for name, point in points]


def trajectories(plan: Plan, rows: Rows) -> dict[str, Spec]:
    """A chart per probed quantity, by its title, of the layer that the parameter ``layer`` names."""
    probed = rows.curves.dropna(subset="layer")
    seen = [group.name for group in plan.groups if has_effective_lr(group)]
    found = {}
    for name in TRAJECTORIES:
        own = probed[probed["name"] == name]
        if name == "weight":  # of what is trained: v, or plain weights
            own = probed[probed["name"] == "v_norm_mean"]
            plain = ~probed["run_id"].isin(own["run_id"]) & probed["name"].eq("w_norm_mean")
            own = pd.concat([own, probed[plain]])
        groups = own["run_id"].map({run_id: group.name for run_id, group in plan.group_of.items()})
        own = own.assign(row=groups)
        if name == "effective_lr":
            own = own[own["row"].isin(seen)]
        finished = own[own["run_id"].map(rows.runs["status"]) == "finished"]
        ends = {key: extent_of(name, part["value"].to_numpy()) for key, part in finished.groupby("layer")}
        if limits := {key: ends[key] for key in probed["layer"].unique() if ends.get(key)}:
            found[TRAJECTORIES[name]] = _trajectory(plan, own, name, limits)
    return found


def _trajectory(plan: Plan, own: pd.DataFrame, name: str, limits: dict[Any, Any]) -> Spec:
    """A panel per row, a line per learning rate, of the first seed; crosses where runs diverged."""
    title, layers = TRAJECTORIES[name], list(limits)
    rates, rows = sorted({lr for g in plan.groups for lr in g.lrs}), [group.name for group in plan.groups]
    quantity = own.groupby("row")["name"].first().to_dict()
    linear = name == "g_mean"
    chosen = [
        {"filter": "datum.layer === layer"},
        JOINED,
        {"filter": f"datum.name === ({to_json(quantity)})[datum.row]"},
        *[{"filter": "datum.value > 0"}] * (not linear),  # Vega would draw zero at the top of a log axis
    ]
    last = [
        {"filter": "datum.status === 'diverged'"},
        {"joinaggregate": [{"op": "max", "field": "epoch", "as": "last"}], "groupby": ["run_id"]},
        {"filter": "datum.epoch === datum.last"},
    ]
    scale: Spec = {"type": "linear", "zero": False} if linear else {"type": "log"}
    ends = {"domainMin": {"expr": "limits[layer][0]"}, "domainMax": {"expr": "limits[layer][1]"}}
    colour = {
        "type": "log",
        "scheme": {"name": "viridis", "extent": [0, 0.85]},
        "reverse": True,
        "domain": [rates[0] / 1.1, rates[-1] * 1.1],
    }
    legend = {"title": "learning rate", "labelExpr": SHORT, "values": rates[:: 1 + len(rates) // 12]}
    encoding: Spec = {
        "x": number("epoch", {}, {"title": "epoch", "tickCount": 5, **WHOLE}),
        "y": number("value", {**scale, **ends}, {"title": title, "labelExpr": SHORT, "tickCount": 5}),
        "color": {"field": "lr", "type": "quantitative", "scale": colour, "legend": legend},
        "detail": {"field": "run_id"},
    }
    told = {"row": "row", "layer": "layer", "lr": "learning rate", "epoch": "epoch", "value": title}
    encoding["tooltip"] = tooltip(**told, status="status", run_id="run")
    line = {"type": "line", "clip": True, "strokeWidth": 1.3, "point": "transparent"}
    cross = {"type": "point", "clip": True, "shape": CROSS, "size": 30, "opacity": 1}
    parts = [{"mark": line, "encoding": encoding}, {"mark": cross, "transform": last, "encoding": encoding}]
    params = [{"name": "layer", "value": layers[len(layers) // 2]}, {"name": "limits", "value": limits}]
    header = {"labelFontWeight": "bold", "labelLimit": 270}
    return {
        "description": f"{title} of a layer against the epoch, first seed, for {', '.join(rows)}",
        "params": [HIDDEN, *params],
        "data": {"name": "curves"},
        "transform": [*chosen, SHOWN],
        "facet": {"field": "row", "type": "nominal", "title": None, "sort": rows, "header": header},
        "columns": 3,
        "spec": {"width": 235, "height": 170, "layer": parts},
    }
