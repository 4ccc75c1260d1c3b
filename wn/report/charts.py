"""Vega-Lite specifications of a page's charts against learning rate, with the figures' colours and limits.

They name data sets of :mod:`.web`: ``runs``, ``curves``, ``points``, ``best`` and ``paper``. The parameter
``hidden`` has the rows that the reader has switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from wn.report.figures import ERRORS, LINEAR, limits_of, look
from wn.report.plan import Plan

Spec = dict[str, Any]

CROSS = "M-1,-1L1,1M-1,1L1,-1"
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "D": "diamond",
}
SHAPES |= {"<": "triangle-left", ">": "triangle-right", "d": "M0,-1L.5,0L0,1L-.5,0Z"}
SHAPES |= {"p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z", "h": "M0,-1L.87,-.5V.5L0,1L-.87,.5V-.5Z"}
SHAPES |= {"X": "M-.3,0L-1,-.7L-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7Z"}
SHAPES |= {"8": "M-.41,-1H.41L1,-.41V.41L.41,1H-.41L-1,.41V-.41Z", "H": "M-1,0L-.5,-.87H.5L1,0L.5,.87H-.5Z"}
SHAPES |= {"*": "M0,-1L.29,-.4L.95,-.31L.47,.15L.59,.81L0,.5L-.59,.81L-.47,.15L-.95,-.31L-.29,-.4Z"}
"""Of matplotlib's markers; as paths, from -1 to 1, where Vega has no name for one."""

DASHES = {"-": [1, 0], "--": [6, 3], ":": [2, 3], "-.": [7, 3, 2, 3]}
WIDTH = 860  # pixels
HIDDEN: Spec = {"name": "hidden", "value": []}
SHOWN: Spec = {"filter": "indexof(hidden, datum.row) < 0"}
SHORT = "format(datum.value, '~g')"
TEXT = ("row", "status", "run_id", "layer")


def layer(data: str, transform: Sequence[Spec], mark: str, encoding: Spec, **style: Any) -> Spec:
    """A part of a chart, of the rows that are shown."""
    steps = [*transform, SHOWN]
    return {
        "data": {"name": data},
        "transform": steps,
        "mark": {"type": mark, "clip": True, **style},
        "encoding": encoding,
    }


def number(field: str, scale: Spec, axis: Spec) -> Spec:
    return {"field": field, "type": "quantitative", "scale": {"nice": False, **scale}, "axis": axis}


def tooltip(**titles: str) -> list[Spec]:
    """Of fields, with their titles; a number has five digits."""
    kinds = {field: "nominal" if field in TEXT else "quantitative" for field in titles}
    form = {field: {"format": ".5~g"} if kinds[field] == "quantitative" else {} for field in titles}
    return [{"field": f, "title": title, "type": kinds[f], **form[f]} for f, title in titles.items()]


def looks_of(plan: Plan) -> Spec:
    """Colour, marker and dashes of the plan's rows, as channels of an encoding."""
    looks = [look(plan, group) for group in plan.groups]
    ranges: Spec = {
        "color": [own["color"] for own in looks],
        "shape": [SHAPES[own["marker"]] for own in looks],
        "strokeDash": [DASHES[own["linestyle"]] for own in looks],
    }
    same: Spec = {"field": "row", "type": "nominal", "legend": None}
    domain = [group.name for group in plan.groups]
    return {channel: {**same, "scale": {"domain": domain, "range": own}} for channel, own in ranges.items()}


def by_lr(plan: Plan, points: pd.DataFrame, name: str) -> Spec:
    """Final validation error or loss: the median of a row, lowest to highest, and every seed as a point."""
    rates = {lr for group in plan.groups for lr in group.lrs}
    low, high = min(rates), max(rates)
    powers = [10.0**i for i in range(-12, 13) if low / 1.01 < 10.0**i < high * 1.01]
    x = number(
        "lr",
        {"type": "log", "domain": [low / 1.6, high * 1.6]},
        {"title": "learning rate", "values": powers[:: 1 + len(powers) // 12], "labelExpr": SHORT},
    )
    if len(powers) < 2:
        x["axis"]["values"] = sorted(rates)
    label, limits = limits_of(plan, points, name, float(points[f"{name}_max"].max()))
    scale: Spec = {"domain": list(limits)} if limits else {"padding": 12}  # pixels
    axis: Spec = {"title": label.split("\n"), "labelExpr": SHORT}
    if name == "error":
        scale, axis = scale | {"type": "symlog", "constant": LINEAR}, axis | {"values": list(ERRORS)}
    elif points[f"{name}_min"].min() > 0:
        scale, axis = scale | {"type": "log"}, axis | {"tickCount": 6}
    else:
        scale["zero"] = False
    y, looks = number(name, scale, axis), looks_of(plan)
    color = {"color": looks["color"]}
    measured = f"final validation {name} ({'%' if name == 'error' else 'nats'})"
    of = {"row": "row", "lr": "learning rate"}
    over = {name: f"{measured}, median", f"{name}_min": "lowest", f"{name}_max": "highest"}
    over |= {"runs": "seeds", "diverged": "of these diverged"}
    one = {"shown": measured, "seed": "seed", "run_id": "run"}
    band = {"y": y | {"field": f"{name}_min"}, "y2": {"field": f"{name}_max"}}
    known = [{"filter": f"isValid(datum.{name})"}]
    finished = [
        {"filter": f"datum.status === 'finished' && isValid(datum.valid_{name})"},
        {"calculate": f"{100 if name == 'error' else 1} * datum.valid_{name}", "as": "shown"},
    ]
    seed = {"x": x, "y": y | {"field": "shown"}, **color, "tooltip": tooltip(**of, **one)}
    median = {"x": x, "y": y, **color, "shape": looks["shape"], "tooltip": tooltip(**of, **over)}
    line = {"x": x, "y": y, **color, "strokeDash": looks["strokeDash"]}
    layers = [
        layer("points", known, "area", {"x": x, **band, **color}, opacity=0.1),
        layer("points", known, "line", line, strokeWidth=1.8),
        layer("runs", finished, "circle", seed, size=22, opacity=0.45),
        layer("points", known, "point", median, size=60, fill="white"),
    ]
    main = {"width": WIDTH, "height": 360, "layer": layers}
    described = f"{measured} against learning rate, for {', '.join(group.name for group in plan.groups)}"
    parts = [_strip(plan, x | {"axis": None}, looks), main]
    return {"description": described, "params": [HIDDEN], "spacing": 6, "vconcat": parts}


def _strip(plan: Plan, x: Spec, looks: Spec) -> Spec:
    """A line per row: crosses where seeds diverged, pale where not all did; its marker at the best rate."""
    names = {"domain": [group.name for group in plan.groups]}
    bare = {"domain": False, "ticks": False, "labelLimit": 330}
    y = {"field": "row", "type": "nominal", "title": None, "scale": names, "axis": bare}
    place = {"x": x, "y": y, "color": looks["color"]}
    pale = {"condition": {"test": "datum.diverged < datum.runs", "value": 0.45}, "value": 1}
    diverged = tooltip(row="row", lr="learning rate", diverged="seeds that diverged", runs="of")
    best = tooltip(row="row", lr="best learning rate")
    return {
        "width": WIDTH,
        "height": {"step": 17},
        "view": {"stroke": None},
        "layer": [
            layer(
                "points",
                [{"filter": "datum.diverged > 0"}],
                "point",
                {**place, "opacity": pale, "tooltip": diverged},
                **{"shape": CROSS, "size": 30, "strokeWidth": 1.8},
            ),
            layer(
                "best",
                [],
                "point",
                {**place, "shape": looks["shape"], "tooltip": best},
                **{"filled": True, "size": 60, "opacity": 1},
            ),
        ],
    }
