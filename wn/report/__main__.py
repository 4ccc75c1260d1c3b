"""``python -m wn.report [NAME or FOLDER ...]``: tables and figures of whatever has been trained.

Takes experiments, or folders of records in runs/ or elsewhere, and writes to runs/NAME/report/. The rerun
of an experiment is compared with the committed rows in results/, which only --publish changes. ``claims``
are the verdicts on the paper's claims (python -m wn.claims measures them).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wn import experiments
from wn.config import UserError, nearest
from wn.records import Record
from wn.report.status import left_out, reason, records_in, status
from wn.stops import tell

if TYPE_CHECKING:
    from wn.report.plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.report", description=__doc__)
    parser.add_argument("what", nargs="*", help="default: all that has records, else all that is committed")
    parser.add_argument("--status", action="store_true", help="how far every experiment is, and what is left")
    parser.add_argument("--publish", action="store_true", help="put rows, tables and pages into results/")
    parser.add_argument("--html", action="store_true", help="an interactive page too, in one file NAME.html")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="records (default: runs)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # tables have ± and ≥, whatever the locale
    try:
        if options.what == ["claims"]:
            from wn.report.claims.page import report

            print(report(options.runs_dir, options.results_dir, options.publish))
        elif options.status:
            print(status(options.runs_dir, options.results_dir))
        else:
            places = options.runs_dir, options.results_dir
            _report(options.what, *places, options.publish, options.html)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; or the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        return tell(error)
    return 0


def _report(what: list[str], runs_dir: Path, results_dir: Path, publish: bool, html: bool) -> None:
    local = {path.parent.parent.name for path in runs_dir.glob("*/*/record.json")}
    committed = {name for name in experiments.names() if (results_dir / name / "runs.csv").exists()}
    default = (local | committed) & {*experiments.names()} if publish else local or committed
    if not what and not publish and not default:
        known = ", ".join(experiments.names())
        raise UserError(f"{runs_dir}: no records yet; name an experiment to see its command: {known}")
    for i, target in enumerate(what or sorted(default)):
        folder = runs_dir / target
        if target not in experiments.names() and not folder.is_dir():
            folder = Path(target)
        if target not in experiments.names() and not folder.is_dir():
            others = sorted({*experiments.names(), *(path.name for path in runs_dir.glob("*"))})
            raise UserError(f"{target}: no experiment, and no folder of records{nearest(target, others)}")
        name = folder.resolve().name
        print("\n" * bool(i) + name)
        if publish and name not in experiments.names():
            raise UserError(f"{name}: no experiment; only the rows of experiments are published")
        try:
            _one(name, folder, results_dir, publish, html)
        except UserError as error:
            if what or publish:
                raise
            print(f"left out: {error}")  # nobody has named it
    if publish:
        from wn.report import page

        results_dir.mkdir(parents=True, exist_ok=True)
        page.write_pages(results_dir)
        print(results_dir / "README.md")


def _plan(name: str, folder: Path) -> tuple[Plan, dict[str, Record], list[str]]:
    """The plan of an experiment or a folder, its records there, and lines on what does not count.

    Raises:
        UserError: a folder that is no experiment's has no record that can be read.
    """
    # pandas takes half a second: not for --status
    from wn.report.collect import config_of
    from wn.report.plan import of_configs, of_experiment

    records, notes = records_in(folder)
    if name in experiments.names():
        plan = of_experiment(name)
        what = f"record{{}} in {folder} {{be}} of no run of {name} as it is now"
    else:
        what = f"record{{}} in {folder} {{be}} of another version of the settings"
        configs = [config for record in records.values() if (config := config_of(record))]
        if not configs:
            notes += left_out([*records], what)
            raise UserError("\n".join([f"{folder}: no records (RUN_ID/record.json) to report", *notes]))
        plan, more = of_configs(name, configs)
        notes += more
        records = {i: r for i, r in records.items() if i in plan.group_of or not config_of(r)}
    notes += left_out([run_id for run_id in records if run_id not in plan.group_of], what)
    mine = {run_id: record for run_id, record in records.items() if run_id in plan.group_of}
    failed, running = ([i for i, r in mine.items() if r.status == word] for word in ("failed", "running"))
    notes += left_out(failed, "run{} failed", f": {reason(mine[failed[0]])}" if failed else "")
    notes += left_out(running, "run{} in training or cut short: the same command goes on")
    return plan, mine, notes


def _one(name: str, folder: Path, results_dir: Path, publish: bool, html: bool) -> None:
    """Report the records of a folder, beside what is committed of an experiment, or put them in its place."""
    from wn.report import collect, compare, page
    from wn.report.tables import table_of

    plan, mine, notes = _plan(name, folder)
    new = collect.of_records(plan, mine)
    old, stale = collect.committed(plan, results_dir / name)
    rows = collect.merged(plan, new, old) if publish else old if new.runs.empty else new
    table, steps = table_of(plan, rows.runs), page.steps_of(plan, rows, results_dir)
    print(page.text(table, steps))
    notes += stale
    if not publish and len(new.runs):
        notes += compare.closing_line(plan, new, old)
    elif not publish and len(old.runs):
        notes.append(
            f"no run of these was made here: the table is of the committed rows, in {results_dir / name}"
        )
    report = results_dir / name if publish else folder / "report"
    as_html, files = report / f"{name}.html", []
    if len(rows.runs) and (html or as_html.exists()):  # a page that is there goes with its rows
        from wn.report import web

        report.mkdir(parents=True, exist_ok=True)
        web.write(as_html, plan, rows, table, [] if publish else notes)
        files.append(as_html)
    if publish and len(rows.runs):
        page.build(plan, rows, table, report)
    elif publish:
        for path in report.glob("*.*"):
            path.unlink()
    elif len(new.runs):
        summary = page.build(plan, new, table, report, png=True)
        page.write_local(report, name, [page.section(plan, new, table, steps, report, ""), *notes], summary)
        files = [*(report / file for file in [*summary["figures"], "page.md"]), *files]
    print(*files, sep="\n", end="\n" * bool(files))
    print(*notes, sep="\n", end="\n" * bool(notes))


if __name__ == "__main__":
    sys.exit(main())
