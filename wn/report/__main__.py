"""``python -m wn.report [NAME or FOLDER ...]``: tables and figures of whatever has been trained.

Takes experiments, or folders of records in runs/ or elsewhere, and writes to runs/NAME/report/. The rerun
of an experiment is compared with the committed rows in results/, which only --publish changes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from wn import experiments
from wn.config import UserError, nearest
from wn.records import DONE, Record
from wn.report import build, collect, page
from wn.report.collect import Rows
from wn.report.plan import of_configs, of_experiment
from wn.report.tables import table_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.report", description=__doc__)
    parser.add_argument("what", nargs="*", help="default: all that has records, else all that is committed")
    parser.add_argument("--status", action="store_true", help="how far every experiment is, and what is left")
    parser.add_argument("--publish", action="store_true", help="put rows, tables and pages into results/")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="records (default: runs)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # tables have ± and ≥, whatever the locale
    try:
        if options.status:
            from wn.report.status import status

            print(status(options.runs_dir, options.results_dir))
        else:
            _report(options.what, options.runs_dir, options.results_dir, options.publish)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; or the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _report(what: list[str], runs_dir: Path, results_dir: Path, publish: bool) -> None:
    for i, target in enumerate(what or _default(runs_dir, results_dir, publish)):
        name, folder = _resolve(target, runs_dir)
        print("\n" * bool(i) + name)
        if not publish:
            _local(name, folder, results_dir)
        elif name in experiments.names():
            _publish(name, folder, results_dir)
        else:
            raise UserError(f"{name}: no experiment; only the rows of experiments are published")
    if publish:
        results_dir.mkdir(parents=True, exist_ok=True)
        page.write_pages(results_dir)
        print(results_dir / "README.md")


def _default(runs_dir: Path, results_dir: Path, publish: bool) -> list[str]:
    committed = [name for name in experiments.names() if (results_dir / name / collect.RUNS).exists()]
    local = sorted({path.parent.parent.name for path in runs_dir.glob("*/*/record.json")})
    if publish:
        return [name for name in experiments.names() if name in {*local, *committed}]
    if not local and not committed:
        known = ", ".join(experiments.names())
        raise UserError(f"{runs_dir}: no records yet; name an experiment to see its command: {known}")
    return local or committed


def _resolve(target: str, runs_dir: Path) -> tuple[str, Path]:
    if target in experiments.names() or (runs_dir / target).is_dir():
        return (runs_dir / target).resolve().name, runs_dir / target
    if Path(target).is_dir():
        return Path(target).resolve().name, Path(target)
    known = {*experiments.names(), *(path.name for path in runs_dir.glob("*") if path.is_dir())}
    raise UserError(f"{target}: no experiment, and no folder of records{nearest(target, sorted(known))}")


def _local(name: str, folder: Path, results_dir: Path) -> None:
    """Report the records of a folder; of an experiment without any, what is committed."""
    records, notes = collect.records_in(folder)
    old = Rows({}, {})
    if name in experiments.names():
        plans = [of_experiment(name)]
        counting, others = collect.counting(records, plans[0], folder)
        old, stale = collect.committed(plans[0], results_dir / name)
        notes += others + stale
    elif not records and not notes:
        raise UserError(f"{folder}: no records (RUN_ID/record.json) in it")
    else:
        configs = {record: collect.config_of(record) for record in records}
        plans = of_configs(name, filter(None, configs.values()))
        counting = {record.content["run_id"]: record for record, config in configs.items() if config}
        others = [record.folder.name for record, config in configs.items() if not config]
        notes += collect.left_out(others, f"record{{}} in {folder} {{be}} of another version of the settings")
    notes += _not_done(counting.values())
    summaries, sections = [], []
    for plan in plans:
        new = collect.of_records(plan, counting)
        rows = new if new.runs else old
        table, steps = table_of(plan, rows.runs), page.steps_of(plan, rows, results_dir)
        print("\n" * (plan is not plans[0]) + page.text(table, steps))
        if new.runs:
            from wn.report import compare

            summaries.append(build(plan, new, table, steps, folder / "report", counting))
            sections.append(page.section(plan, new, table, steps, folder / "report", ""))
            notes += compare.closing_line(plan, new, old)
        elif old.runs:
            notes.append(
                f"no run of these was made here: the table is of the committed rows, in {results_dir / name}"
            )
    if summaries:
        page.write_local(folder / "report", name, [*sections, *notes], summaries)
        figures = [name for summary in summaries for name in summary["figures"]]
        print(*(folder / "report" / file for file in [*figures, "page.md"]), sep="\n")
    print(*notes, sep="\n", end="\n" * bool(notes))


def _publish(name: str, folder: Path, results_dir: Path) -> None:
    """Put the local rows of an experiment in the place of the committed ones, and make all of it again."""
    plan = of_experiment(name)
    records, notes = collect.records_in(folder)
    counting, others = collect.counting(records, plan, folder)
    old, stale = collect.committed(plan, results_dir / name)
    rows = collect.merged(plan, collect.of_records(plan, counting), old)
    table, steps = table_of(plan, rows.runs), page.steps_of(plan, rows, results_dir)
    print(page.text(table, steps), *notes, *others, *stale, sep="\n")
    for path in (results_dir / name).glob("*.*"):
        path.unlink()  # all is written again, but for figures that are no longer drawn
    if rows.runs:
        build(plan, rows, table, steps, results_dir / name, counting)


def _not_done(records: Iterable[Record]) -> list[str]:
    """Name the runs that failed, and those that began and have no result."""
    records = list(records)
    failed = [record for record in records if record.status == "failed"]
    why = f": {failed[0].content.get('error')}" if failed else ""
    running = [record.folder.name for record in records if record.status not in ("failed", *DONE)]
    lines = collect.left_out([record.folder.name for record in failed], "run{} failed", why)
    return lines + collect.left_out(running, "run{} in training or cut short: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
