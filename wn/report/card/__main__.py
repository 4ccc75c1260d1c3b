"""``python -m wn.report.card FOLDER``: the page of a report card, of what :mod:`wn.compare` left there.

FOLDER is ``runs/compare/NAME`` with ``card.json``; the records are beside it, by family. The rows of the
norms that it is compared with are committed in ``results/compare/``, and --publish puts new ones there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wn.config import UserError
from wn.report.card.families import FAMILIES, family_of, publish
from wn.report.card.page import write
from wn.stops import tell


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wn.report.card", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--publish", action="store_true", help="commit the rows of the four others")
    options = parser.parse_args(arguments)
    try:
        card = json.loads((options.folder / "card.json").read_text(encoding="utf-8"))
        runs_dir, names = options.folder.parent, [name for name in FAMILIES if name in card["families"]]
        if options.publish:
            print(*(publish(runs_dir, name) for name in names), sep="\n")
        write(card, [family_of(runs_dir, card, name) for name in names], options.folder)
    except (UserError, OSError) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
