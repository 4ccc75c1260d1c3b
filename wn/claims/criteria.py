"""A claim and its criterion, as ``experiments/claims/ID.yaml`` holds them, and notes beside it."""

from __future__ import annotations

import hashlib
from typing import Literal, Self, TypeVar

import pydantic

from wn.config import UserError, nearest, places
from wn.config.errors import explain_file
from wn.config.yaml_files import read_yaml
from wn.experiments import Part

FOLDER = places.ROOT / "experiments" / "claims"

Bounds = tuple[float, float]
T = TypeVar("T", "Claim", "Notes")


class Quantity(Part):
    """What is measured once a seed, and the thresholds that its 95% interval over seeds is held against.

    ``above``: *confirmed* where the interval lies above ``confirmed``, *confirmed with limits* where above
    ``limits``, *refuted* where below ``refuted``, else *open*; ``below`` is its mirror image. ``inside``:
    confirmed where the interval lies within the pair, refuted where wholly outside of the other; with
    ``tost`` *confirmed* is by that of 90%, which is two one-sided tests at 5% (equivalence). These are the
    words of a claim with one test: Holm's correction over a claim's tests asks more
    (:mod:`wn.report.claims.verdicts`).
    """

    what: str
    rule: Literal["above", "below", "inside"]
    confirmed: float | Bounds
    limits: float | None = None
    refuted: float | Bounds | None = None
    tost: bool = False

    @pydantic.model_validator(mode="after")
    def _thresholds_fit_the_rule(self) -> Self:
        pair = self.rule == "inside"
        if isinstance(self.confirmed, tuple) != pair or (
            self.refuted is not None and isinstance(self.refuted, tuple) != pair
        ):
            raise ValueError("rule=inside takes pairs [low, high], above and below take numbers")
        if pair and self.limits is not None:
            raise ValueError("limits: not with rule=inside")
        if self.tost and not pair:
            raise ValueError("tost: only with rule=inside")
        numbers = (self.confirmed, self.limits, self.refuted)
        order = [number for number in numbers if isinstance(number, float)]
        if not pair and order != sorted(order, reverse=self.rule == "above"):
            raise ValueError("thresholds are out of order: confirmed, limits, refuted go one way")
        return self


class Claim(Part):
    """One statement of the paper, in our words."""

    id: str = pydantic.Field(pattern=r"^[A-M]\d?[a-z]?$")
    section: str
    again: str = ""
    """The claim that is tested once more; ``statement`` then says where."""
    statement: str
    type: Literal["exact", "law", "mechanism", "comparison", "cost", "experiment"]
    """``experiment``: about one of section 5's at smaller scale; its verdicts begin with *toy*."""
    paper: str
    """What the paper shows for it."""
    design: str
    control: str
    known: str = ""
    """What was known of its rows when the criterion was written, where that is not nothing."""
    late: bool = False
    """Some runs of its rows are older than the criterion."""
    long: bool = False
    seeds: int = pydantic.Field(default=3, ge=3)
    """Below so many nothing is judged, so that seeds that come in one by one are looked at once."""
    quantities: dict[str, Quantity] = pydantic.Field(min_length=1)
    conditions: dict[str, str] = pydantic.Field(min_length=1)
    """What it is tested on; the first word is the family of models."""
    second: list[str] = pydantic.Field(default=[])
    """Conditions that were measured to confirm a refutation, by another model or code."""

    @property
    def words(self) -> str:
        """The statement, of a test elsewhere too."""
        return f"{self.again} once more, {self.statement}." if self.again else self.statement

    @pydantic.model_validator(mode="after")
    def _second_is_a_condition(self) -> Self:
        if unknown := set(self.second) - set(self.conditions):
            raise ValueError(f"second: {min(unknown)} is no condition")
        if self.type == "exact" and any(q.rule != "below" for q in self.quantities.values()):
            raise ValueError("type=exact: the largest error, with rule=below")
        return self


class Lower(Part):
    """A verdict that a reader of the rows may lower, never raise."""

    to: Literal["open", "confirmed with limits"]
    why: str


class Notes(Part):
    """Remarks beside a verdict, which are no part of the criterion and may change."""

    literature: str = ""
    beyond: str = ""
    """What the words say beyond what was tested."""
    change: str = ""
    """What would change the verdict."""
    data: bool = False
    """The paper shows data for it: a figure or a table."""
    ours: bool = False
    """The paper does not say it: it follows from what it says, or contradicts it."""
    late: bool = False
    """The criterion's last change is younger than some runs of its rows (as a criterion's own ``late``)."""
    lower: Lower | None = None


def ids() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Claim:
    """The claim called so; UserError where there is none, or its file is not well formed."""
    path, shown = FOLDER / f"{name}.yaml", f"experiments/claims/{name}.yaml"
    if not path.exists():
        raise UserError(f"{name}: no claim{nearest(name, ids())}")
    claim = _read(Claim, read_yaml(path, shown), shown)
    if claim.id != name:
        raise UserError(f"{shown}: id: {claim.id}, and the file is called {name}")
    if claim.again and claim.again not in ids():
        raise UserError(f"{shown}: again: {claim.again}: no claim{nearest(claim.again, ids())}")
    return claim


def notes(name: str) -> Notes:
    path, shown = FOLDER / "notes" / f"{name}.yaml", f"experiments/claims/notes/{name}.yaml"
    return _read(Notes, read_yaml(path, shown), shown) if path.exists() else Notes()


def _read(model: type[T], tree: dict[str, object], shown: str) -> T:
    try:
        return model.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(f"{shown}: {explain_file(model, error)}") from None


def digest(content: bytes) -> str:
    """What names a version of a criterion: twelve hexadecimal digits of its file's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:12]


def digest_of(name: str) -> str:
    return digest((FOLDER / f"{name}.yaml").read_bytes())
