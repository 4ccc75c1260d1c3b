"""The report: records -> rows -> tables -> figures -> page. Alone in knowing matplotlib; never imports torch.

:mod:`.plan` says which runs there should be, :mod:`.collect` which are done; :mod:`.tables` and
:mod:`.statistics` make numbers of them, :mod:`.figures` and :mod:`.curves` draw, :mod:`.page` writes, and
:mod:`.compare` holds a rerun against what is committed.
"""

import os

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: there is no display, and a wrong name fails
