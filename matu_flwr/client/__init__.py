"""What a client does with one task: fine-tune, evaluate, keep its own state. Knows no Flower."""

from matu_flwr.client.evaluate import Evaluation, evaluate
from matu_flwr.client.fit import FitResult, TrainingDiverged, fit
from matu_flwr.client.images import ImageSet
from matu_flwr.client.state import ClientState, StateError

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
