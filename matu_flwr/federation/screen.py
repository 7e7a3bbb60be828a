"""The screen: which replies are too far from the rest of their round to be used, and which merged values to take back.

The size of an update is its root mean square: the length of a vector, or of the change of a head from the one that was
sent, divided by the square root of how many numbers it has. So heads of few and of many classes can be compared.

    A reply is refused if one of its updates is larger than `screen.factor` times the reference R, and larger than what
    the run's own training steps can do.

    R_r  lower median over the clients of round r of (lower median over each one's tasks of the update's size)
    P    lower median of the R_r of the rounds before
    R    max(R_r, P), and at most factor · P;  P if one client is alone in its round;  R_r while there is no P;
         what the steps can do if one client is alone and there is no P

Each client has one vote in R_r, and each round one in P. So a client that grows from round to round does not raise the
bound, and nobody does while at most half of a round's clients are hostile. R_r is taken over all tasks, not over the
holders of one: two of a task's three holders would own its median, and what they send reaches the tasks of everybody
who holds one of theirs, because clients get one unified vector.

What the steps can do: AdamW moves a number by about the learning rate in a step. Nothing below that is refused. So
nobody gets others refused by sending next to nothing, and a task that still learns is not measured by those that have
converged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.client.rule import Rule
from matu_flwr.config.settings import Settings
from matu_flwr.events import Guards, Screened, ScreenedKind
from matu_flwr.merging import TaskVectors, UnifiedTaskVector
from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.clipping import lower_median, reference_norm, task_norms
from matu_flwr.merging.masks import masks_of
from matu_flwr.wire import Uplink

Kind = Literal["vector", "head"]
KINDS: tuple[Kind, ...] = ("vector", "head")
Sizes = dict[str, dict[str, float]]
"""Size of an update, by client and task."""
References = dict[str, dict[str, float]]
"""R_r by kind and round; part of a checkpoint, so that a resumed run decides the same."""


class Screen:
    """Judges the replies of a round, and then what was merged of them.

    Parameters
    ----------
    settings : Settings
        `screen` has the bounds; `train` says what a training step can do.
    rule : type of Rule
        The method's client side: it says what its clients send.
    """

    def __init__(self, settings: Settings, rule: type[Rule]) -> None:
        self.settings, self.rule, self.options = settings, rule, settings.screen
        self.sizes: dict[Kind, Sizes] = {kind: {} for kind in KINDS}
        self.rolled_back: dict[str, str] = {}
        self._found: dict[str, ScreenedKind] = {}
        # Without `expect` nothing is known, and nothing but NaN and infinity is wrong.
        self._longest: dict[Kind, float] = dict.fromkeys(KINDS, math.inf)

    def begin(self) -> None:
        """Forget what was measured and rolled back in the round before."""
        self.sizes = {kind: {} for kind in KINDS}
        self.rolled_back, self._found = {}, {}

    # --- replies ---

    def measure(self, client: str, reply: Uplink, heads: Mapping[str, LinearHead]) -> None:
        """Take the sizes of the updates in one reply. `heads` are those that the client was sent."""
        if reply.vectors is not None:
            self.sizes["vector"][client] = vector_sizes(reply.vectors, one_vector=self.rule.one_vector)
        if reply.heads:
            changes = {task: change_of_head(head, heads.get(task)) for task, head in reply.heads.items()}
            self.sizes["head"][client] = changes

    def judge(self, round_: int, references: References) -> dict[str, Screened]:
        """Judge all replies that were measured in this round, and forget the sizes of those that are refused.

        Parameters
        ----------
        round_ : int
            The round.
        references : dict
            The references of the rounds before. That of this round is added.

        Returns
        -------
        dict of str to Screened
            By client that is refused: its update that is furthest beyond the bound.
        """
        refused: dict[str, Screened] = {}
        for kind in KINDS:
            judged = self._judged(kind, round_, list(references.get(kind, {}).values()))
            for client, found in judged:
                if found["size"] > found["limit"] and _excess(found) > _excess(refused.get(client)):
                    refused[client] = found
        for kind in KINDS:
            self.sizes[kind] = {client: found for client, found in self.sizes[kind].items() if client not in refused}
            accepted = self.sizes[kind]
            # Zero says nothing about what others may send.
            if accepted and (reference := reference_norm(accepted)) > 0:
                references.setdefault(kind, {})[str(round_)] = reference
        return refused

    def _judged(self, kind: Kind, round_: int, earlier: Sequence[float]) -> list[tuple[str, Screened]]:
        """Every update of a kind with its bound. Empty if nothing of the kind came, or the screen is off."""
        sizes, factor = self.sizes[kind], self.options.factor
        if factor == 0 or not sizes:
            return []
        common = reference_of(sizes, earlier, factor)
        judged: list[tuple[str, Screened]] = []
        for client, of_client in sorted(sizes.items()):
            reach = self.reach(kind, round_, len(of_client))
            # Of the first client, if it comes alone, nothing else is known than what it was asked to do.
            reference = reach + self.noise() if common is None else common
            limit = max(factor * reference, reach)
            for task, size in sorted(of_client.items()):
                what: Screened = {
                    "what": kind,
                    "task": task,
                    "size": size,
                    "reference": reference,
                    "factor": factor,
                    "limit": limit,
                }
                judged.append((client, what))
        client, largest = max(judged, key=lambda pair: pair[1]["size"])
        self._found[kind] = {
            "reference": reference,
            "largest": largest["size"],
            "limit": largest["limit"],
            "client": client,
            "task": largest["task"],
        }
        return judged

    def reach(self, kind: Kind, round_: int, tasks: int) -> float:
        """What the training steps of the run's settings can do to a number of what is sent.

        Parameters
        ----------
        kind : {"vector", "head"}
            A task's vector, or the change of its head.
        round_ : int
            Where a client sends all that it has trained, the steps of all rounds so far count.
        tasks : int
            Tasks of the client: where they share one backbone, the steps of all of them move it.
        """
        train, rule = self.settings.train, self.rule
        if kind == "head":
            return train.head_lr * train.steps * (round_ if rule.keeps_heads(self.settings) else 1)
        steps = train.steps * (tasks if rule.one_vector else 1)
        steps *= 1 if rule.sends_updates(self.settings) else round_
        return train.lr * steps

    def noise(self) -> float:
        """Size of the noise that clients add for privacy."""
        return self.settings.privacy.noise_multiplier * self.settings.privacy.clip_norm

    # --- what was merged ---

    def expect(self, gain: float) -> None:
        """Set what a merge may make of the accepted updates: at most `gain` times the largest, if nothing is wrong."""
        for kind in KINDS:
            self._longest[kind] = max(
                (size for found in self.sizes[kind].values() for size in found.values()), default=0.0
            )
        self._longest["vector"] *= gain

    def allows(self, task: str, merged: Tensor) -> bool:
        """Whether a task may move by a merged step, (d,) float32. If not, the round's event will say why.

        For methods that add a step to a vector in place, which `roll_back` cannot undo.
        """
        return self._fits("vector", task, size_of(merged))

    def roll_back(self, owner: Any, before: Before) -> None:
        """Put back what a strategy held before a merge, where the merge gave what it should not.

        A method that keeps one vector per task and nothing else loses these tasks' part of the round. A method with
        state of its own, which stands for several tasks, loses the whole merge.
        """
        found: dict[int, bool] = {}
        bad = []
        for name, key, new, old in before.changes(owner):
            # Several tasks may share one tensor.
            if id(new) not in found:
                found[id(new)] = self._fits("vector", key, size_of(new), 0.0 if old is None else size_of(old))
            if not found[id(new)]:
                bad.append((name, key))
        if not bad:
            return
        if before.held.keys() != {"task_vectors"}:
            self.rolled_back = dict.fromkeys(owner.classes, next(iter(self.rolled_back.values())))
            before.restore(owner)
            return
        for name, task in bad:
            put_back(getattr(owner, name), before.held[name], task)

    def roll_back_heads(self, heads: dict[str, LinearHead], before: Mapping[str, LinearHead]) -> None:
        """Put back the heads of tasks whose merged head changed by more than a mean of the accepted ones can."""
        for task, head in list(heads.items()):
            if head is not before.get(task) and not self._fits("head", task, change_of_head(head, before.get(task))):
                put_back(heads, before, task)

    def _fits(self, kind: Kind, task: str, size: float, before: float = 0.0) -> bool:
        """Whether a merged value of this size may be used, in the place of one of the size `before`."""
        jump = self.options.jump
        allowed = max(self._longest[kind], before)
        if math.isfinite(size) and (jump == 0 or size <= jump * allowed):
            return True
        what = "vector" if kind == "vector" else "change of the head"
        self.rolled_back[task] = (
            f"the merged {what} has size {size:.3g} (root mean square), and the accepted updates allow {allowed:.3g}"
            + (f" (screen.jump = {jump:g} times as much is rolled back)" if math.isfinite(size) else "")
        )
        return False

    # --- for the history ---

    def event(self) -> Guards:
        """For the round's event: by kind, the reference and the largest update; and what was rolled back."""
        found: Guards = {}
        if self._found:
            found["screen"] = self._found
        if self.rolled_back:
            found["rolled_back"] = dict(sorted(self.rolled_back.items()))
        return found


class Before:
    """What a strategy held before a merge. Nothing is copied: a merge puts new tensors in the place of the old ones.

    Parameters
    ----------
    owner : object
        The strategy.
    names : sequence of str
        Its attributes that a merge may change.
    """

    def __init__(self, owner: object, names: Sequence[str]) -> None:
        held = {name: getattr(owner, name) for name in names}
        self.held = {name: dict(value) if isinstance(value, Mapping) else value for name, value in held.items()}

    def changes(self, owner: object) -> list[tuple[str, str, Sized, Sized | None]]:
        """The vectors that are new since then: attribute, name (of a task, if it is one), new and old vector."""
        found = []
        for name, held in self.held.items():
            now = getattr(owner, name)
            pairs = (
                [(str(key), value, held.get(key)) for key, value in now.items()]
                if isinstance(now, Mapping) and isinstance(held, Mapping)
                else [(name, now, held)]
            )
            for key, new, old in pairs:
                if isinstance(new, Tensor | UnifiedTaskVector) and new is not old:
                    found.append((name, key, new, old if isinstance(old, Tensor | UnifiedTaskVector) else None))
        return found

    def restore(self, owner: object) -> None:
        """Put everything back."""
        for name, value in self.held.items():
            setattr(owner, name, value)


def put_back(values: dict[str, Any], before: Mapping[str, Any], key: str) -> None:
    """Give one entry the value that it had before; remove it if it had none."""
    if key in before:
        values[key] = before[key]
    else:
        del values[key]


def reference_of(sizes: Sizes, earlier: Sequence[float], factor: float) -> float | None:
    """R of a round, from the sizes of its updates and the references of the rounds before; None: nothing to go by."""
    if not sizes:
        return None
    before = lower_median(earlier) if earlier else None
    if len(sizes) == 1:
        return before
    now = reference_norm(sizes)
    return now if before is None else min(max(now, before), factor * before)


def vector_sizes(vectors: TaskVectors, *, one_vector: bool = False) -> dict[str, float]:
    """Size of every task's vector as the server rebuilds it. With `one_vector`, the first task stands for all."""
    tasks = vectors.tasks
    if one_vector:
        first = tasks[0]
        return dict.fromkeys(tasks, vector_sizes(_only(vectors, first))[first])
    return {task: norm / math.sqrt(max(length_of(vectors), 1)) for task, norm in task_norms(vectors).items()}


def length_of(vectors: TaskVectors) -> int:
    """D of one client's vectors."""
    return vectors.d if isinstance(vectors, UnifiedTaskVector) else len(next(iter(vectors.vectors.values())))


def _only(vectors: TaskVectors, task: str) -> TaskVectors:
    if isinstance(vectors, UnifiedTaskVector):
        return replace(
            vectors,
            masks=masks_of(vectors.masks, [task], vectors.d),
            rescalers={task: vectors.rescalers[task]},
            opposites={task: vectors.opposites[task]} if vectors.opposites else {},
        )
    return replace(vectors, vectors={task: vectors.vectors[task]})


def change_of_head(head: LinearHead, before: LinearHead | None) -> float:
    """Size of a head's change from the one that was sent; zeros if none was."""
    squares = 0.0
    for name, now in head.tensors().items():
        change = now.double() if before is None else now.double() - before.tensors()[name].double()
        squares += float(change.square().sum())
    return math.sqrt(squares / max(head.weight.numel() + head.bias.numel(), 1))


Sized = Tensor | UnifiedTaskVector


def size_of(value: Sized) -> float:
    """Root mean square of a (d,) vector, in float64; of a unified vector, that of its longest task."""
    if isinstance(value, UnifiedTaskVector):
        return max(vector_sizes(value).values())
    squares = math.fsum(float(value[start:stop].double().square_().sum()) for start, stop in blocks(value.numel()))
    return math.sqrt(squares / max(value.numel(), 1))


def refusal(found: Screened) -> str:
    """Why a reply is refused, in words."""
    what = "vector" if found["what"] == "vector" else "change of the head"
    times = f"{found['size'] / found['reference']:.3g} times " if found["reference"] > 0 else "beyond "
    return (
        f"its {what} of task {found['task']!r} has size {found['size']:.3g} (root mean square), {times}"
        f"the reference of the round, {found['reference']:.3g}; at most {found['limit']:.3g} is accepted "
        f"(screen.factor = {found['factor']:g}): nothing of this reply is used"
    )


def _excess(found: Screened | None) -> float:
    return 0.0 if found is None else found["size"] / found["limit"]
