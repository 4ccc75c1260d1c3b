"""What runs are judged by: a classifier's error or a VAE's loss, and all in which their reports differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wn.experiments import Experiment


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure, by the name that it has in the columns ``valid_*`` and ``test_*``."""

    name: str
    metrics: tuple[str, ...]
    """What a record has of each split."""
    more: dict[str, str]
    """Columns that ``runs.csv`` has beside these, and their types."""
    heading: str
    """Of what the table of a sweep shows of the test set."""
    unit: float
    """What that number is multiplied by there: 100 makes %, -1 makes a bound of a loss."""
    widths: dict[str, tuple[str, Callable[[float], float]]]
    """Columns of usable widths: their heading, and the threshold for the best validation number."""
    drawn: tuple[str, ...]
    """What is drawn against the learning rate, a figure each."""
    cut: int
    """Losses are shown up to this many times that before training."""

    @property
    def valid(self) -> str:
        """The column by which a learning rate is chosen."""
        return f"valid_{self.name}"

    @property
    def test(self) -> str:
        """The column that is read once it is chosen."""
        return f"test_{self.name}"


ERROR = Measure(
    name="error",
    metrics=("loss", "error"),
    more={},
    heading="test error %",
    unit=100,
    widths={
        "width_1pp": ("width +1pp", lambda lowest: lowest + 0.01),
        "width_x1.5": ("width ×1.5", lambda lowest: lowest * 1.5),
    },
    drawn=("error", "loss"),
    cut=4,  # some classifiers finish at thousands of nats
)

LOSS = Measure(
    name="loss",
    metrics=("loss", "reconstruction", "kl"),
    more={"test_nll": "float64", "iwae_samples": "Int64", "iwae_images": "Int64"},
    heading="test bound (nats)",
    unit=-1,
    widths={
        "width_1nat": ("width 1 nat", lambda lowest: lowest + 1),
        "width_3nats": ("width 3 nats", lambda lowest: lowest + 3),
    },
    drawn=("loss",),
    cut=1,  # norms differ by a nat or two among dozens
)


def of(experiment: Experiment) -> Measure:
    """The measure of an experiment."""
    return {"error": ERROR, "loss": LOSS}[experiment.measure]
