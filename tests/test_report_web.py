"""The page for a browser: its data are the rows, its charts draw them, it asks for nothing, and it works."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert
from report_cases import (
    ELBOS,
    ERRORS,
    LRS,
    NAME,
    SEEDS,
    SWEEP,
    TABLE,
    contents,
    data_in,
    declare,
    publish_curve,
    rows_of,
    write_seeds,
    write_sweep,
)

from wn.records import public_config
from wn.report import collect, web
from wn.report.__main__ import main
from wn.report.plan import Plan
from wn.report.tables import table_of

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FINISHED = sum(end is not None for rates in ERRORS.values() for ends in rates for end in ends)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A sweep, all of whose runs are done."""
    monkeypatch.chdir(tmp_path)
    plan = declare(tmp_path, monkeypatch, SWEEP)
    write_sweep(tmp_path / "runs", plan)
    return plan


def written(plan: Plan, folder: Path) -> str:
    rows = rows_of(plan, folder / "runs")
    web.write(folder / "page.html", plan, rows, table_of(plan, rows.runs), ["1 < 2"])
    return (folder / "page.html").read_text(encoding="utf-8")


def frame(tree: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(tree["data"], columns=tree["columns"])


def drawn(data: dict[str, Any], spec: dict[str, Any], **values: Any) -> str:
    """A chart as SVG, drawn without a browser, with other values of its parameters."""
    names = ("runs", "curves", "points", "best", "paper")
    params = [{**own, "value": values.get(own["name"], own["value"])} for own in spec["params"]]
    datasets = {name: frame(data[name]).astype(object).to_dict("records") for name in names}
    datasets = {name: [{k: None if v != v else v for k, v in row.items()} for row in rows]
                for name, rows in datasets.items()}  # fmt: skip
    return str(vl_convert.vegalite_to_svg({**spec, "params": params, "datasets": datasets}))


@pytest.mark.usefixtures("no_figures")
def test_the_data_are_the_rows(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "vl_convert", None)  # importing it fails
        assert main([NAME]) == 0
    assert main([NAME, "--html"]) == 0
    folder = tmp_path / "runs" / NAME / "report"
    data = data_in((folder / f"{NAME}.html").read_text(encoding="utf-8"))
    for name in (collect.RUNS, collect.CURVES):
        committed = pd.read_csv(folder / name)
        shown = frame(data[name.removesuffix(".csv")])[list(committed)]
        assert len(shown) == {collect.RUNS: 18}.get(name, len(shown)) > 0
        again = pd.read_csv(io.StringIO(shown.to_csv(index=False)))
        pd.testing.assert_frame_equal(again, committed, check_exact=True, check_dtype=False)
    assert set(frame(data["curves"])["layer"]) == {"hidden0", "hidden1", "output"}, "every layer"
    assert data["table"]["data"] == table_of(plan, rows_of(plan, tmp_path / "runs").runs).cells()[1:]


def test_every_setting_is_shown(plan: Plan, tmp_path: Path) -> None:
    settings = data_in(written(plan, tmp_path))["settings"]
    cells = {key: (common, *own) for key, common, *own in settings["data"]}
    config = public_config(next(iter(plan.groups[0].configs.values())))
    flat = {key: f"{key}." for key in config if isinstance(config[key], dict)}
    assert {key for key in config if key not in flat} | {
        prefix + key for part, prefix in flat.items() for key in config[part]
    } <= {*cells}
    assert cells["optim.lr"] == (", ".join(map(str, LRS)), "", "")
    assert cells["seed"] == (", ".join(map(str, SEEDS)), "", "")
    assert cells["norm.direction"] == ("", "plain", "row")


def test_charts_draw_the_rows_that_are_shown(plan: Plan, tmp_path: Path) -> None:
    data = data_in(written(plan, tmp_path))
    assert list(data["charts"]) == ["error", "loss"]
    for hidden, norms in (([], [*ERRORS]), (["none"], ["weight_norm"])):
        svg = drawn(data, data["charts"]["error"], hidden=hidden)
        seeds = [e for norm in norms for rate in ERRORS[norm] for e in rate if e is not None]
        found = re.findall(r'aria-label="[^"]*final validation error \(%\): ([\d.]+); seed: \d', svg)
        assert sorted(map(float, found)) == pytest.approx(sorted(100 * error for error in seeds))
    for spec in data["trajectories"].values():
        for layer in ("hidden0", "hidden1", "output"):
            assert re.search(rf'aria-label="[^"]*layer: {layer}', drawn(data, spec, layer=layer))


def test_zero_is_at_the_foot_of_a_logarithmic_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = declare(tmp_path, monkeypatch, TABLE)
    first = plan.groups[0]
    write_seeds(tmp_path / "runs", plan, first.norm, first.lrs[0], [0.0, 0.0, 0.0])
    data = data_in(written(plan, tmp_path))
    shown = re.findall(r"training error \(%\), mean: ([\d.]+)", drawn(data, data["charts"]["train_error"]))
    assert {*shown} == {"0.02"}


def test_an_update_of_zero_is_not_drawn(plan: Plan, tmp_path: Path) -> None:
    data = data_in(written(plan, tmp_path))
    curves = frame(data["curves"])
    still = curves["name"].eq("relative_update") & curves["epoch"].eq(curves["epoch"].max())
    curves.loc[still, "value"] = 0.0
    data["curves"]["data"] = curves.values.tolist()
    svg = drawn(data, data["trajectories"]["relative update"], layer="output")
    assert re.findall(r"relative update: ([^;]+)", svg)
    assert "relative update: 0;" not in svg


@pytest.mark.parametrize("tree", [TABLE | {"curves": "paper/bounds.yaml"}, ELBOS])
def test_rows_are_drawn_by_epoch(tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_curve(tmp_path, "paper/bounds.yaml", {"ours": [[1, 60.0], [4, 15.0]], "WN": [[10, -91.0, 0.1]]})
    plan = declare(tmp_path, monkeypatch, tree)
    first, is_error = plan.groups[0], plan.metric.key == "error"
    ends: list[float | None] = [None, 0.04, 0.08] if is_error else [None, 86.0, 87.0]
    write_seeds(tmp_path / "runs", plan, first.norm, first.lrs[0], ends)
    data = data_in(written(plan, tmp_path))
    name, title = ("train_error", "training error (%)") if is_error else ("test_loss", "test ELBO (nats)")
    svg = drawn(data, data["charts"][name])
    mean = rf'epoch: (\d+)[^"]*; {re.escape(title)}: ([−\d.]+); seed'
    shown = {float(value.replace("−", "-")) for epoch, value in re.findall(mean, svg) if epoch in ("4", "20")}
    assert shown == ({4.0, 8.0} if is_error else {-86.0, -87.0}), "the finished seeds at the last epoch"
    assert len(data["paper"]["data"]) == (2 if is_error else 1)
    assert data["trajectories"] == {}


def test_the_page_names_no_remote_address_and_escapes_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "title": evil, "claim": evil})
    write_sweep(tmp_path / "runs", plan)
    page = written(plan, tmp_path)
    assert evil not in page
    assert "<li>1 &lt; 2</li>" in page
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)
    parts = dict(part.split(" ", 1) for part in policy[0].split("; "))
    assert parts.pop("default-src") == "'none'"
    allowed = {word for part in parts.values() for word in part.split()}
    assert allowed == {"'unsafe-inline'", "'unsafe-eval'", "data:"}
    loads = (
        r"""(?:\b(?:src|href|action|poster)\s*=|\burl\(|@import|\bimport\b\s*\(?|\bfetch\()\s*\\?["']?\s*"""
    )
    assert re.findall(loads + r"(?:https?:|//\w)", page) == []
    assert re.findall(r"<(?:link|iframe|object|embed|img|base)\b", page.partition('id="data"')[0]) == []
    # What the library names without loading it: XML namespaces, a schema, a comment, a link that is off.
    hosts = {*re.findall(r"https?://([\w.-]+)", page)}
    assert hosts <= {"www.w3.org", "vega.github.io", "github.com"}
    assert "actions: false" in page


@pytest.mark.usefixtures("no_figures", "plan")
def test_a_published_page_is_renewed_with_its_rows(tmp_path: Path) -> None:
    assert main([NAME, "--publish"]) == 0
    assert f"{NAME}/{NAME}.html" not in contents(tmp_path / "results")
    assert main([NAME, "--publish", "--html"]) == 0
    before = contents(tmp_path / "results")
    assert main([NAME, "--html"]) == 0
    page = (tmp_path / "runs" / NAME / "report" / f"{NAME}.html").read_text(encoding="utf-8")
    assert "reproduced: 2 rows of 2" in page  # what a terminal is told
    assert f"[{NAME}.html]({NAME}/{NAME}.html)" in before["README.md"].decode()
    assert main(["--publish", "--runs-dir", "nothing"]) == 0
    assert contents(tmp_path / "results") == before


# In a browser ----------------------------------------------------------------------------------------

TRY = """<script type="module">
const seen = {violations: 0}, wait = () => new Promise(done => setTimeout(done, 300));
document.addEventListener("securitypolicyviolation", () => seen.violations += 1);
while (!document.body.dataset.ready) await wait();
const all = selector => [...document.querySelectorAll(selector)];
const rows = () => all("#runs tbody tr").map(row => [...row.cells].map(cell => cell.textContent));
const heads = all("#runs th button"), lr = heads.map(head => head.textContent).indexOf("lr");
const seeds = () => all("#charts figure:first-of-type [aria-label*='seed: ']").length;
seen.charts = all("#charts svg").length;
[seen.rows, seen.seeds] = [rows().length, seeds()];
heads[lr].click();
heads[lr].click();
seen.sorted = rows().map(row => row[lr]);
seen.mark = heads[lr].parentElement.ariaSort;
document.querySelector("#filters input").click();
await wait();
[seen.rowsLeft, seen.seedsLeft] = [rows().length, seeds()];
const layer = document.getElementById("layer");
layer.value = "output";
layer.onchange();
await wait();
seen.layer = all("#trajectory [aria-label*='layer: ']").map(mark => /layer: (\\w+)/.exec(mark.ariaLabel)[1]);
seen.requests = performance.getEntriesByType("resource").map(({name}) => name);
const result = Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(seen)});
document.body.replaceChildren(result);
</script>"""


@pytest.mark.skipif(
    BROWSER is None, reason="not run: no browser (chromium, google-chrome) to open the page in"
)
def test_the_page_works_in_a_browser(plan: Plan, tmp_path: Path) -> None:
    page = written(plan, tmp_path)
    (tmp_path / "tried.html").write_text(TRY.join(page.rsplit("</body>", 1)), encoding="utf-8")
    words = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [
        str(BROWSER),
        *words.split(),
        "--virtual-time-budget=30000",
        profile,
        (tmp_path / "tried.html").as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    (text,) = re.findall(r'<pre id="seen">(.*?)</pre>', result.stdout, re.S)
    seen = json.loads(text)
    runs = len(plan.group_of)
    assert (seen["charts"], seen["rows"], seen["seeds"]) == (2, runs, FINISHED)
    assert (seen["sorted"], seen["mark"]) == (["1"] * 6 + ["0.1"] * 6 + ["0.01"] * 6, "descending")
    hidden = sum(end is not None for ends in ERRORS["none"] for end in ends)
    assert (seen["rowsLeft"], seen["seedsLeft"]) == (runs // 2, FINISHED - hidden)
    assert set(seen["layer"]) == {"output"}
    assert (seen["requests"], seen["violations"]) == ([], 0)
