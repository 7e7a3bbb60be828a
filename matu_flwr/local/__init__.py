"""What a client does with one task: fine-tune, evaluate, keep its own state. Knows no Flower."""

from matu_flwr.local.evaluate import Evaluation, evaluate
from matu_flwr.local.fit import FitResult, TrainingDiverged, fit
from matu_flwr.local.images import ImageSet
from matu_flwr.local.state import ClientState, StateError

__all__ = [
    "ClientState",
    "Evaluation",
    "FitResult",
    "ImageSet",
    "StateError",
    "TrainingDiverged",
    "evaluate",
    "fit",
]
