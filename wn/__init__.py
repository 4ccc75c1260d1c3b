"""Weight Normalization (Salimans & Kingma, NIPS 2016), reproduced, and a bench for normalisation methods.

The library, which needs torch alone, is :mod:`wn.norm`; its main names are here too, and the model of a run::

    from wn import data_dependent_init, fold, normalize
    run = wn.load("runs/adhoc/0123456789ab")

A run goes from :mod:`wn.train` through :mod:`wn.run` and :mod:`wn.trainer` into a record
(:mod:`wn.records`) and from there into :mod:`wn.report`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wn.norm import (
        NormalizedLayer,
        data_dependent_init,
        fold,
        normalize,
        parameter_groups,
        project_,
        summary,
    )
    from wn.trained import load

__all__ = [
    "NormalizedLayer",
    "data_dependent_init",
    "fold",
    "load",
    "normalize",
    "parameter_groups",
    "project_",
    "summary",
]


def __getattr__(name: str) -> Any:
    # Imported when it is first asked for: the report, which is of this package too, needs no torch.
    if name in __all__:
        return getattr(import_module("wn.trained" if name == "load" else "wn.norm"), name)
    raise AttributeError(f"module 'wn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
