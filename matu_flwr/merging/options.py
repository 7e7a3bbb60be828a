"""The switches of `merging`: every step of docs/method.md that leaves a choice.

A default is what a run does by default: the best measured configuration. Our reading of the published method is
`MergeOptions.paper()` for the server and `PAPER` for `unify`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypedDict, get_args, get_type_hints

from matu_flwr.choices import (
    Agreement,
    Combine,
    EpsilonUnit,
    Magnitude,
    Reconstruction,
    RelationWeight,
    Signs,
    Similarity,
)
from matu_flwr.merging.errors import MergeError

MAX_MAGNITUDE = 1e30
"""Largest number of a task vector. Fine-tuning moves a parameter by much less than 1: more is a fault.

It is a tenth of what the wire takes, so that no rounding for the way brings a number beyond that.
"""
MAX_RESCALER = 1e6
"""Largest rescaler. With it a number of a vector stays within float32, which ends at 3.4e38."""


class Operator(TypedDict):
    """The switches of `unify`."""

    magnitude: Magnitude
    reconstruction: Reconstruction


PAPER: Operator = {"magnitude": "max", "reconstruction": "masked"}
"""Elect, mask, rescale as published: `unify(task_vectors, **PAPER)`."""


@dataclass(frozen=True)
class MergeOptions:
    """How the server merges the replies of one round. The defaults are those of a run; `paper` has the published ones.

    Attributes
    ----------
    rho : float in [0, 1]
        ρ: sign agreement α from which a parameter counts as agreed on. 0 = every parameter does.
    kappa : int ≥ 0
        κ: how many related tasks a task may learn from. 0 = no cross-task step.
    epsilon : float
        ε: least similarity of a related task, in the unit of `epsilon_unit`.
    epsilon_unit : {"similarity", "z"}
        "similarity": ε bounds S in [0, 1], where ½ means unrelated. "z": ε bounds the standard score of S, that is
        how many standard errors S lies above ½ if signs were coin tosses.
    agreement : {"threshold-or-soft", "hard", "soft", "none"}
        Aggregated mask m̂: 1 where α ≥ ρ and α elsewhere; 1 or 0; α; 1 everywhere.
    similarity : {"all", "support"}
        Normalise the sign agreement of two tasks by all parameters, or by those where both signs are non-zero.
    signs : {"masked", "complete"}
        Sign of a client's task vector: sgn(m ⊙ τ), or sgn(τ) ⊙ (2m − 1), which also reads a cleared mask bit as "the
        task's own sign was the other one".
    relation_weight : {"similarity", "excess"}
        Weight of a related task: S, or max(0, 2S − 1), which is 0 for an unrelated one.
    combine : {"mean", "sum"}
        (τ̂ + Σ w m̂ ⊙ τ̂') / (1 + Σ w), which keeps the norm, or τ̂ + 1/|Z| Σ w m̂ ⊙ τ̂'.

    Raises
    ------
    MergeError
        A value outside its range or not among its choices.
    """

    rho: float = 0.4
    kappa: int = 3
    epsilon: float = 3.0
    epsilon_unit: EpsilonUnit = "z"
    agreement: Agreement = "none"
    similarity: Similarity = "all"
    signs: Signs = "complete"
    relation_weight: RelationWeight = "excess"
    combine: Combine = "mean"

    @classmethod
    def paper(cls, **others: Any) -> MergeOptions:
        """Our reading of the published method, but for the switches given."""
        published = {
            "rho": 0.4,
            "kappa": 3,
            "epsilon": 0.5,
            "epsilon_unit": "similarity",
            "agreement": "threshold-or-soft",
            "similarity": "all",
            "signs": "masked",
            "relation_weight": "similarity",
            "combine": "mean",
        }
        return cls(**{**published, **others})

    def __post_init__(self) -> None:
        for name in ("rho", "epsilon"):
            if not isinstance(getattr(self, name), Real) or isinstance(getattr(self, name), bool):
                raise MergeError(f"{name} = {getattr(self, name)!r}: expected a number")
        if not 0 <= self.rho <= 1:
            raise MergeError(f"rho = {self.rho} is outside [0, 1]")
        if not isinstance(self.kappa, int) or isinstance(self.kappa, bool) or self.kappa < 0:
            raise MergeError(f"kappa = {self.kappa!r}: expected a whole number ≥ 0; 0 switches the cross-task step off")
        if self.epsilon != self.epsilon:
            raise MergeError("epsilon is NaN")
        hints = get_type_hints(type(self))
        for field in fields(self):
            if choices := get_args(hints[field.name]):
                check_choice(field.name, getattr(self, field.name), choices)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise MergeError if `value` is not among the choices of a switch."""
    if value not in choices:
        raise MergeError(f"{name} = {value!r}: expected one of {list(choices)}")
