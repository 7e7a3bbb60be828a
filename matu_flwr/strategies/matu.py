"""MaTU: Many-Task Federated Fine-Tuning via Unified Task Vectors.

Tsouvalas, Ozcelebi, Meratnia. arXiv 2502.06376, FedGenAI at IJCAI 2025.

A task vector τ^t = θ^t − θ_p, (d,) float32, is how far the model of task t has moved from the pretrained parameters
θ_p. A unified vector is one vector (d,) for several tasks. Its modulators, a mask (d bits) and one or two rescalers
(numbers) per task, turn it back into an approximation of each task's vector.

One round, in the order in which it runs. The step numbers are those of docs/method.md:

    server step 6        for every sampled client, unify the τ^t of its tasks       `MaTU.downlink_vector`
    client step 1        fine-tune every task from what was received                `MaTURule.train`
    client steps 2 to 4  unify the trained vectors, or this round's updates         `MaTURule.pack`
    server steps 1, 2    for every task, the mean over the clients that hold it     `MaTU.merge`
    server steps 3, 4    the task graph: which tasks are related                    `MaTU.merge`
    server step 5        every task learns from its related tasks: the new τ^t      `MaTU.merge`

The formulas are in `merging.unify` (client steps 2 and 3) and `merging.aggregate` (server steps 1 to 5). The server
keeps one τ^t per task and nothing per client. A task that nobody trained in a round keeps its τ^t.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from matu_flwr.client.fit import Span
from matu_flwr.client.rule import Fitted, Rule, Separate
from matu_flwr.config.sections import MatuSettings
from matu_flwr.config.settings import Settings
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.registration import Client
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
    """Unify the vectors of several tasks with the switches of the settings (method, client steps 2 and 3).

    The client calls it on what it trained, and the server on what it sends (server step 6).

    Parameters
    ----------
    matu : MatuSettings
        `magnitude` and `reconstruction` are passed to `unify`; without `modulators` every task reads the vector itself.
    task_vectors : mapping of str to Tensor
        By task, (d,) float32.

    Returns
    -------
    UnifiedTaskVector
        `.vector` is (d,) float32.
    """
    found = unify(task_vectors, magnitude=matu.magnitude, reconstruction=matu.reconstruction)
    return found if matu.modulators else without_modulators(found)


def merge_options(matu: MatuSettings) -> MergeOptions:
    """The options of `merging.aggregate`, each taken from the setting of the same name."""
    return MergeOptions(**{field.name: getattr(matu, field.name) for field in fields(MergeOptions)})


class MaTURule(Separate):
    """MaTU's client: fine-tune every task, then send all as one unified vector (method, client steps 1 to 4)."""

    @classmethod
    @override
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        return "unified"

    @classmethod
    @override
    def sends_updates(cls, settings: Settings) -> bool:
        return settings.matu.payload == "update"

    @classmethod
    @override
    def keeps_state(cls, settings: Settings) -> bool:
        """Whether the client keeps files: only error feedback needs them, for what compression has lost so far."""
        return settings.matu.error_feedback

    @override
    def train(self, span: Span) -> Fitted:
        """Fine-tune every task (client step 1), and choose what of the result is sent.

        With `matu.payload` = vector, that is the trained vector τ_n^t. With update, it is Δ, which is τ_n^t minus the
        vector that the task started from.

        With `matu.error-feedback`, e, which is what compression has lost in earlier rounds, is added to Δ. The new loss
        is kept for the next round: e ← (Δ + e) − τ̄, where τ̄ is what the server will reconstruct.

        Returns
        -------
        Fitted
            `.vectors` by task, (d,) float32; with error feedback, `.own` holds the new e of every task, (d,) float32.
        """
        fitted = super().train(span)
        matu = self.work.settings.matu
        if matu.payload == "vector":
            return fitted
        # The server has packed these starts as well, so they are not its τ^t but what the modulators make of them. None
        # means that the task started at θ_p, where Δ and the vector are the same.
        starts = {task: self.start(task) for task in fitted.vectors}
        updates = {t: v if (start := starts[t]) is None else v - start for t, v in fitted.vectors.items()}
        if not matu.error_feedback:
            return Fitted(updates, fitted.heads, fitted.losses)
        own = self.work.own
        owed = {t: v + own[f"{t}/residual"] if f"{t}/residual" in own else v for t, v in updates.items()}
        # The loss has to cover the whole channel: unifying, and then the fewer bits in which the vector travels.
        packed = self.pack(owed)
        packed = replace(packed, vector=as_sent(packed.vector, self.work.settings.wire.vector_dtype))
        residuals = {f"{task}/residual": vector - packed.reconstruct(task) for task, vector in owed.items()}
        # The vectors before packing are returned: the round packs what every rule gives it.
        return Fitted(owed, fitted.heads, fitted.losses, residuals)

    @override
    def pack(self, vectors: Mapping[str, Tensor]) -> UnifiedTaskVector:
        return unified(self.work.settings.matu, vectors)


class MaTU(ManyTaskStrategy):
    """MaTU's server: it merges per task, lets related tasks learn from each other, and unifies again for every client.

    Parameters
    ----------
    settings : Settings
        `settings.matu` has the switches; docs/method.md explains each of them. The preset `paper` has been applied by
        `Settings.from_run_config`.
    model, **arguments
        See `ManyTaskStrategy`.

    Notes
    -----
    Memory of the server, beyond `window` raw messages: one packed reply per sampled client (d numbers, and d bits per
    task), the τ^t of T tasks, and one more (T, d) float32 that the merge writes into.
    """

    about = "unified task vectors with per-task modulators"
    paper = "https://arxiv.org/abs/2502.06376"
    section = "matu"

    rule: ClassVar[type[Rule]] = MaTURule
    robust_mean = True

    def __init__(self, settings: Settings, model: ModelInfo, **arguments: Any) -> None:
        super().__init__(settings, model, **arguments)
        self.options = merge_options(settings.matu)
        # (T, d) float32 that every round's merge writes into. It is kept because memory that is new to a process takes
        # two to three times as long to fill.
        self._merged: Tensor | None = None
        # With `matu.downlink` = global: all tasks in one unified vector. It is made once a round, for the first client.
        self._global: UnifiedTaskVector | None = None

    @override
    def downlink_vector(self, client: Client) -> UnifiedTaskVector | None:
        """Unify the τ^t of the client's tasks (method, server step 6). None while all of them are at θ_p.

        With `matu.downlink` = global, all tasks of the federation are unified instead. Everybody then gets the same
        vector, (d,) float32, and the modulators of its own tasks.
        """
        if not self.task_vectors.keys() & client.tasks.keys():
            return None
        if self.settings.matu.downlink == "client":
            return self._unified(client.tasks)
        if self._global is None:
            self._global = self._unified(self.classes)
        # The vector is shared by all clients; only the modulators are picked out.
        everything = self._global
        return UnifiedTaskVector(
            everything.vector,
            masks_of(everything.masks, client.tasks, everything.d),
            {task: everything.rescalers[task] for task in client.tasks},
            {task: everything.opposites[task] for task in client.tasks} if everything.opposites else {},
        )

    @override
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph:
        """Make the new τ^t of every task in the replies (method, server steps 1 to 5), and return the task graph."""
        # It was made of the old τ^t.
        self._global = None
        tasks = {task for update in updates for task in update.vectors.tasks}
        if self._merged is None or len(self._merged) < len(tasks):
            # Room for all tasks at once: the tasks of the replies differ from round to round.
            self._merged = room_for(max(len(tasks), len(self.classes)), self.d)
        result = aggregate(updates, self.options, out=self._merged[: len(tasks)], mean=self.influence.mean)
        # Each `tau` is a row of `_merged`, which the next round overwrites: copy its numbers, never keep the row.
        for task, tau in result.task_vectors.items():
            if not self.screen.allows(task, tau):
                continue
            if task not in self.task_vectors:
                self.task_vectors[task] = tau.clone()
            elif self.settings.matu.payload == "update":
                # Clients sent how far they moved, so the merge is a step from the old τ^t.
                self.task_vectors[task] += tau
            else:
                self.task_vectors[task].copy_(tau)
        return result.graph

    @override
    def gain(self, tasks: int) -> float:
        """A sum over a task and its related ones, whose weights are at most 1, can be twice as long as the longest."""
        return 2.0 if self.options.combine == "sum" else 1.0

    @override
    def method_settings(self) -> Mapping[str, Any]:
        return self.settings.matu.model_dump(by_alias=True)

    def _unified(self, tasks: Iterable[str]) -> UnifiedTaskVector:
        return unified(self.settings.matu, {task: self.task_vector(task) for task in tasks})
