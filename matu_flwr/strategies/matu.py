"""MaTU: Many-Task Federated Fine-Tuning via Unified Task Vectors.

Tsouvalas, Ozcelebi, Meratnia. arXiv 2502.06376, FedGenAI at IJCAI 2025.

One round:

    server   for every sampled client n: elect–mask–rescale over {τ^t : t in T_n}       -> unified vector, modulators
    client   for every task: start at what was received, fine-tune, elect–mask–rescale  -> unified vector, modulators
    server   per task: agreement, weighted mean; task graph; learn from related tasks   -> τ^t

The server keeps one τ^t per task and nothing per client. A task that nobody trained in a round stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

from torch import Tensor

from matu_flwr.client.fit import Span
from matu_flwr.client.rule import Fitted, Rule, Separate
from matu_flwr.config.sections import MatuSettings
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy, ModelInfo
from matu_flwr.federation.registration import Client
from matu_flwr.federation.round_books import Event
from matu_flwr.merging import (
    ClientUpdate,
    MergeOptions,
    PayloadKind,
    TaskGraph,
    UnifiedTaskVector,
    aggregate,
    as_sent,
    unify,
    without_modulators,
)
from matu_flwr.merging.aggregate import room_for
from matu_flwr.merging.masks import masks_of


def unified(matu: MatuSettings, task_vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
    """Elect, mask and rescale (method, client steps 2 and 3) as the settings want it; without modulators if off."""
    found = unify(task_vectors, magnitude=matu.magnitude, reconstruction=matu.reconstruction, packed=True)
    return found if matu.modulators else without_modulators(found)


def merge_options(matu: MatuSettings) -> MergeOptions:
    """The switches that `merging.aggregate` reads: the settings of the same names."""
    return MergeOptions(**{field.name: getattr(matu, field.name) for field in fields(MergeOptions)})


class MaTURule(Separate):
    """MaTU: vectors, or this round's updates, as one unified vector with modulators (method, client steps 1 to 4)."""

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """A unified vector."""
        return "unified"

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """What the compression lost, with error feedback."""
        return settings.matu.error_feedback

    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks; with `matu.payload` = update, subtract where each of them started.

        With `matu.error-feedback`, what earlier rounds lost is added, and what this round's channel loses is kept:
        e ← (Δ + e) − τ̄, with τ̄ as the server reconstructs it.
        """
        fitted = super().train(span)
        matu = self.work.settings.matu
        if matu.payload == "vector":
            return fitted
        starts = {task: self.start(task) for task in fitted.vectors}
        updates = {t: v if (start := starts[t]) is None else v - start for t, v in fitted.vectors.items()}
        if not matu.error_feedback:
            return Fitted(updates, fitted.heads, fitted.losses)
        own = self.work.own
        owed = {t: v + own[f"{t}/residual"] if f"{t}/residual" in own else v for t, v in updates.items()}
        packed = self.pack(owed)
        packed = replace(packed, vector=as_sent(packed.vector, self.work.settings.wire.vector_dtype))
        residuals = {f"{task}/residual": vector - packed.reconstruct(task) for task, vector in owed.items()}
        return Fitted(owed, fitted.heads, fitted.losses, residuals)

    def pack(self, vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        """The unified vector, as `matu.magnitude`, `matu.reconstruction` and `matu.modulators` say."""
        return unified(self.work.settings.matu, vectors)


class MaTU(ManyTaskStrategy):
    """MaTU's server: modulator construction per client, aggregation per task, transfer between related tasks.

    Parameters
    ----------
    settings : Settings
        `settings.matu` has the switches; docs/method.md says what each does. `Settings.from_run_config` applies the
        preset `paper`.
    model, run_name, attempt, observer
        See `ManyTaskStrategy`.

    Notes
    -----
    Memory of the server, beyond `window` raw messages: one packed reply per sampled client (d numbers and d bits per
    task), τ^t of T tasks, and one more (T, d) float32 for the merge, kept from round to round: memory that is new to
    a process takes two to three times as long to fill.
    """

    rule: ClassVar[type[Rule]] = MaTURule
    robust_mean = True

    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        *,
        run_name: str = "default",
        attempt: int = 0,
        observer: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(settings, model, run_name=run_name, attempt=attempt, observer=observer)
        self.options = merge_options(settings.matu)
        self._merged: Tensor | None = None  # (T, d) that the rounds' merges write into
        self._global: UnifiedTaskVector | None = None  # downlink = "global": the same vector for everybody in a round

    def downlink_vector(self, client: Client) -> UnifiedTaskVector | None:
        """Unify what the client's tasks are at (method, server step 6); None while all of them are at θ_p."""
        if not self.task_vectors.keys() & client.tasks.keys():
            return None
        if self.settings.matu.downlink == "client":
            return self._unified(client.tasks)
        if self._global is None:
            self._global = self._unified(self.classes)
        everything = self._global
        return UnifiedTaskVector(
            everything.vector,
            masks_of(everything.masks, client.tasks, everything.d),
            {task: everything.rescalers[task] for task in client.tasks},
            {task: everything.opposites[task] for task in client.tasks} if everything.opposites else {},
        )

    def merge(self, updates: list[ClientUpdate]) -> TaskGraph:
        """Aggregate, find related tasks, combine (method, server steps 1 to 5)."""
        self._global = None
        tasks = {task for update in updates for task in update.unified.tasks}
        if self._merged is None or len(self._merged) < len(tasks):
            self._merged = room_for(max(len(tasks), len(self.classes)), self.d)
        result = aggregate(updates, self.options, out=self._merged[: len(tasks)], mean=self.influence.mean)
        for task, tau in result.task_vectors.items():
            if task not in self.task_vectors:
                self.task_vectors[task] = tau.clone()
            elif self.settings.matu.payload == "update":
                self.task_vectors[task] += tau
            else:
                self.task_vectors[task].copy_(tau)
        return result.graph

    def method_settings(self) -> Mapping[str, Any]:
        """MaTU's switches."""
        return self.settings.matu.model_dump(by_alias=True)

    def _unified(self, tasks: Iterable[str]) -> UnifiedTaskVector:
        return unified(self.settings.matu, {task: self.task_vector(task) for task in tasks})
