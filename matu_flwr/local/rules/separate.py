"""Every task is fine-tuned by itself, from a start of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from matu_flwr.local.fit import Span, fit
from matu_flwr.local.privacy import private_result
from matu_flwr.local.rules.base import Fitted, Rule
from matu_flwr.merging import PayloadKind, UnifiedTaskVector, as_sent
from matu_flwr.settings import Settings


class Separate(Rule):
    """One vector per task, sent as they are: pertask-fedavg, MaT-FL."""

    separate_updates = True

    @classmethod
    def payload(cls, settings: Settings, round_: int) -> PayloadKind:
        """A vector per task."""
        return "separate"

    def train(self, span: Span) -> Fitted:
        """Fine-tune the tasks one after the other; with privacy, what leaves here is clipped and noised."""
        work = self.work
        vectors, heads, losses = {}, {}, {}
        for task in work.node.tasks:
            share, start = self.share(task), self.start(task)
            result = fit(
                work.backbone,
                start,
                share.head,
                share.data,
                work.settings.train,
                seed=share.seed,
                task=task,
                span=span,
            )
            if work.settings.privacy.on:
                result = private_result(result, start, share.head, work.settings.privacy)
            vectors[task], heads[task], losses[task] = result.task_vector, result.head, result.loss
        return Fitted(vectors, heads, losses)


class Unified(Separate):
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
        return self.work.settings.matu.unify(vectors)
