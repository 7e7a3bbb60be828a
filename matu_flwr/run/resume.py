"""Resuming a run from a checkpoint: its settings, its clients, and the checkpoints that a run writes.

A resumed run takes its settings from the checkpoint. A setting that is given beside `resume-from`, on the command line
or in an experiment file, must have the value it has there, even if that value is a default. Only settings that change
no result may differ: folders, time limits, and the number of messages in flight. `screen.*` may differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging import INFO
from pathlib import Path

import torch
from flwr.common.logger import log
from torch import Tensor

from matu_flwr import digests
from matu_flwr.config.removed import without_removed
from matu_flwr.config.settings import DEFAULTS, PRESETS, Scalar, Settings, SettingsError, named
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.run.checkpoint import Checkpoint, CheckpointError, Held, find_checkpoint, write_checkpoint
from matu_flwr.run.history import HISTORY, kept_part, last_event_after
from matu_flwr.run.plan import now
from matu_flwr.run.recorder import Recorder
from matu_flwr.texts import listed

# Settings that may differ in a resumed run.
FREE = (
    "experiment",
    "resume-from",
    "out-dir",
    "data-dir",
    "cache-dir",
    "state-dir",
    # The file may lie elsewhere: what is in it is checked through the digests that the clients announce.
    "backbone.heads-file",
    "min-nodes",
    "max-tasks-total",
    "max-tasks-per-client",
    "bind-names",
    "node-timeout",
    "round-timeout",
    "max-failed-fraction",
    # A run that stopped because of a bad client, or because an honest one was taken for one, is resumed with others.
    "screen.factor",
    "screen.jump",
    "window",
    "server-evaluate",
)


@dataclass(frozen=True)
class Resumed:
    """What a run is resumed from: its folder, its checkpoint, and the checkpoint's tensors by name."""

    out_dir: Path
    checkpoint: Checkpoint
    tensors: dict[str, Tensor]


def settings_of(
    given: Mapping[str, Scalar], skipped: Callable[[str], None] | None = None
) -> tuple[Settings, Resumed | None]:
    """Work out the settings of a run, and what it resumes from if `resume-from` is among them.

    The method of the run has not checked or changed the settings yet: pass them to `strategies.prepared` next.

    Parameters
    ----------
    given : mapping
        The settings that somebody typed or wrote into an experiment file, by key.
    skipped : callable, optional
        Is told about each checkpoint that cannot be used; see `find_checkpoint`.

    Returns
    -------
    tuple
        The settings, and what the run resumes from; None for a new run.

    Raises
    ------
    SettingsError
        A setting is unknown, or its value is not allowed.
    CheckpointError, HistoryError
        There is no usable checkpoint, the run has completed already, or a setting differs from the checkpoint's.
    """
    asked = named(given)
    start = str(asked.get("resume-from", ""))
    if not start:
        return Settings.from_run_config(given), None
    out_dir, checkpoint, tensors = find_checkpoint(Path(start).expanduser().absolute(), skipped)
    settings = same_settings(asked, checkpoint, out_dir)
    # Read only to raise early, before anything is started, if the history does not match the checkpoint.
    kept_part(out_dir / HISTORY, checkpoint.history)
    last = last_event_after(out_dir / HISTORY, checkpoint.history)
    if last is not None and last["event"] == "end" and last.get("status") == "completed":
        raise CheckpointError(f"the run in {out_dir} has completed: there is nothing to resume")
    return settings, Resumed(out_dir, checkpoint, tensors)


def same_settings(asked: Mapping[str, Scalar], checkpoint: Checkpoint, out_dir: Path) -> Settings:
    """Take the checkpoint's settings, and from `asked` those that may differ (`FREE`).

    A preset is compared by its name. The values that it stands for became single settings when the run began, and the
    checkpoint has those.

    Raises
    ------
    CheckpointError
        A setting that must not differ has another value; the text names each key with both values. Or the checkpoint
        has a value that this release no longer knows.
    """
    chosen = Settings.from_flat(asked).flat()
    try:
        stored = {**DEFAULTS, **in_todays_words(checkpoint.settings)}
    except SettingsError as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {out_dir} cannot be resumed: {error}"
        ) from None
    try:
        Settings.from_flat(stored)
    except SettingsError as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {out_dir} has settings that this release does not take: "
            f"{error}; resume with the release that wrote it"
        ) from error
    differing = [key for key in asked if key not in FREE and chosen[key] != stored[key]]
    if differing:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {out_dir} has other settings: "
            + ", ".join(f"{key} = {stored[key]!r}, you gave {chosen[key]!r}" for key in differing)
            + "; leave them out to resume with those of the checkpoint, or start a new run"
        )
    if asked.get("out-dir") and Path(str(asked["out-dir"])).absolute() != out_dir:
        raise CheckpointError(
            f"out-dir = {str(asked['out-dir'])!r}, but a resumed run goes on in its own folder, {out_dir}: leave it out"
        )
    free = {key: chosen[key] for key in asked if key in FREE}
    return Settings.from_flat({**stored, **free, "out-dir": str(out_dir)}).checked()


def in_todays_words(stored: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the settings of a checkpoint under the names of this release, even if an earlier one wrote it.

    Raises
    ------
    SettingsError
        A value was removed, so the run cannot go on as it began.
    """
    values = without_removed(stored)
    if values.get("matu.preset") not in ("", *PRESETS):
        # Nothing is lost: the checkpoint also has every setting that this preset stood for.
        values["matu.preset"] = ""
    return values


# --- the federation ------------------------------------------------------------------------------------------------


def federation(clients: Iterable[Client]) -> dict[str, Held]:
    """Describe by client everything about its partition and its tasks that influences the results, and its key."""
    return {
        client.name: {
            "partition": client.partition,
            "key": client.key,
            "registered": client.registered,
            "tasks": {
                task: {
                    "classes": digests.of_json(info.classes)[: digests.SHORT],
                    "classes without images": list(info.absent),
                    "training images": info.train,
                    "test images": info.test,
                    "digest of the labels": info.data,
                    "digest of the zero-shot head": info.head,
                }
                for task, info in sorted(client.tasks.items())
            },
        }
        for client in clients
    }


def check_federation(checkpoint: Checkpoint, clients: Iterable[Client], fingerprint: str) -> None:
    """Check that the clients and the backbone are those that the checkpoint was written with.

    Raises
    ------
    CheckpointError
        The pre-trained weights θ_p differ, clients are missing or new, or a task has other images. The text names each
        difference.
    """
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"the backbone has other weights θ_p or another layout (fingerprint {fingerprint[:12]}…) than at "
            f"the checkpoint of round {checkpoint.round} ({checkpoint.fingerprint[:12]}…): the weights file, a release "
            "or the type of CPU differs; use those that the run was started with"
        )
    found, expected = federation(clients), checkpoint.federation
    reasons = [f"client {name!r} is missing: start its node" for name in expected if name not in found]
    reasons += [f"client {name!r} was not in the run then: stop its node" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        reasons += _differences(name, expected[name], found[name])
    if reasons:
        raise CheckpointError(
            f"the clients are not those of the checkpoint of round {checkpoint.round}:"
            + "".join(f"\n  {reason}" for reason in reasons)
        )


def _differences(client: str, expected: Held, found: Held) -> list[str]:
    reasons = []
    if found["partition"] != expected["partition"]:
        reasons.append(f"client {client!r} has partition {found['partition']}, expected {expected['partition']}")
    if found["tasks"].keys() != expected["tasks"].keys():
        return [*reasons, f"client {client!r} has tasks {list(found['tasks'])}, expected {list(expected['tasks'])}"]
    for task, facts in expected["tasks"].items():
        for what, value in facts.items():
            if (other := found["tasks"][task].get(what)) != value:
                reasons.append(f"client {client!r}, task {task!r}: {what} {other!r}, expected {value!r}")
    return reasons


# --- writing checkpoints and resuming ------------------------------------------------------------------------------


class Keeper:
    """Writes a checkpoint after every round, and resumes a run from one.

    Parameters
    ----------
    settings : Settings
        The run's settings. With `keep_checkpoints` = 0 no checkpoint is written.
    recorder : Recorder
        The run's recorder: it knows the output folder and how far the history has come.
    """

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self.settings = settings
        self.recorder = recorder

    def save(self, strategy: ManyTaskStrategy) -> None:
        """Write the checkpoint of the round that has just finished, or of round 0 before the first one."""
        if not self.settings.keep_checkpoints:
            return
        described, tensors = strategy.state()
        checkpoint = Checkpoint(
            round=strategy.completed,
            rounds=strategy.num_rounds,
            attempt=strategy.attempt,
            time=now(),
            run_name=strategy.run_name,
            fingerprint=strategy.model.fingerprint,
            settings=self.settings.flat(),
            federation=federation(strategy.clients),
            history=self.recorder.mark(),
            seconds=self.recorder.seconds,
            described=described,
        )
        write_checkpoint(self.recorder.out_dir, checkpoint, tensors, self.settings.keep_checkpoints)

    def resume(self, strategy: ManyTaskStrategy, found: Resumed, run_id: int) -> None:
        """Set the strategy to the state of the checkpoint, and write a resume event into the history.

        Raises
        ------
        CheckpointError
            The clients, the backbone or the method are not those of the checkpoint.
        """
        checkpoint = found.checkpoint
        check_federation(checkpoint, strategy.clients, strategy.model.fingerprint)
        if unknown := sorted(checkpoint.described.keys() - set(strategy.kept)):
            raise CheckpointError(
                f"the checkpoint of round {checkpoint.round} in {found.out_dir} has {listed(unknown)} of its strategy, "
                f"expected only {listed(strategy.kept, 20)}: another release of matu-flwr wrote it; resume with that "
                "release"
            )
        if missing := sorted(set(strategy.kept) - checkpoint.described.keys()):
            log(INFO, "the checkpoint is of an earlier release and has no %s: they begin anew", listed(missing))
        strategy.resume(checkpoint.round, checkpoint.described, found.tensors)
        for task, vector in strategy.task_vectors.items():
            if vector.shape != (strategy.d,) or vector.dtype != torch.float32:
                raise CheckpointError(
                    f"the checkpoint of round {checkpoint.round} in {found.out_dir}: the vector of task {task!r} has "
                    f"shape {tuple(vector.shape)} of {vector.dtype}, expected ({strategy.d},) of torch.float32; "
                    "name an earlier checkpoint, if there is one, or start a new run"
                )
        log(INFO, "resuming after round %d of %d in %s", checkpoint.round, checkpoint.rounds, found.out_dir)
        self.recorder.observe(
            {
                "event": "resume",
                "time": now(),
                "run_id": str(run_id),
                "round": checkpoint.round,
                "attempt": strategy.attempt,
            }
        )
        # Write the checkpoint again with the new attempt number. If this attempt is cut off before its first round is
        # done, the next one must not get the same number.
        self.save(strategy)
