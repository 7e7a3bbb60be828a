"""The client's work: fine-tune and test its tasks, and keep its own state. Nothing here depends on Flower."""

from matu_flwr.client.evaluate import Evaluation, UnusableModel, evaluate
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
    "UnusableModel",
    "evaluate",
    "fit",
]
