"""A run that goes on from a checkpoint: its settings, its clients, and the checkpoints that it writes itself.

A resumed run takes its settings from the checkpoint. What is given beside `resume-from`, typed or in an experiment
file, has to be the same, also where it equals a default. Only what changes no number may be another: folders, time
limits, how many messages are in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.common.logger import log
from torch import Tensor

from matu_flwr import digests
from matu_flwr.config.settings import DEFAULTS, PRESETS, Scalar, Settings, named
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.registration import Client
from matu_flwr.run.checkpoint import Checkpoint, CheckpointError, find_checkpoint, write_checkpoint
from matu_flwr.run.history import HISTORY, kept_part, read_history
from matu_flwr.run.plan import now
from matu_flwr.run.recorder import Recorder

# A resumed run may have others of these.
FREE = (
    "experiment",
    "resume-from",
    "out-dir",
    "data-dir",
    "cache-dir",
    "state-dir",
    "backbone.heads-file",  # clients announce what is in it
    "min-nodes",
    "node-timeout",
    "round-timeout",
    "max-failed-fraction",
    "window",
    "server-evaluate",
)


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from."""

    out_dir: Path
    checkpoint: Checkpoint
    tensors: dict[str, Tensor]


def settings_of(given: Mapping[str, Scalar]) -> tuple[Settings, Resumed | None]:
    """Settings of a run from what somebody gave, and what it goes on from if `resume-from` says so.

    What its method makes of them is the next question of the caller: `strategies.prepared`.

    Raises
    ------
    SettingsError
        Settings that cannot be.
    CheckpointError, HistoryError
        Nothing to go on from; a run that has completed; other settings than those of the checkpoint.
    """
    asked = named(given)
    start = str(asked.get("resume-from", ""))
    if not start:
        return Settings.from_run_config(given), None
    out_dir, checkpoint, tensors = find_checkpoint(Path(start).expanduser().absolute())
    settings = same_settings(asked, checkpoint, out_dir)
    kept_part(out_dir / HISTORY, checkpoint.history)
    last = read_history(out_dir / HISTORY)[-1:]
    if last and last[0]["event"] == "end" and last[0]["status"] == "completed":
        raise CheckpointError(f"the run in {out_dir} has completed: there is nothing to go on with")
    return settings, Resumed(out_dir, checkpoint, tensors)


def same_settings(asked: Mapping[str, Scalar], checkpoint: Checkpoint, out_dir: Path) -> Settings:
    """The checkpoint's settings, with what may differ from what is asked for.

    A preset is compared by its name. What it stands for was merged with the rest when the run began, and stands in the
    checkpoint.

    Raises
    ------
    CheckpointError
        Something else is asked for too; the text names the keys with both values.
    """
    chosen = Settings.from_flat(asked).flat()
    stored = {**DEFAULTS, **in_todays_words(checkpoint.settings)}
    differing = [key for key in asked if key not in FREE and chosen[key] != stored[key]]
    if differing:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {out_dir} is of other settings: "
            + ", ".join(f"{key} = {stored[key]!r}, you gave {chosen[key]!r}" for key in differing)
            + "; leave them out to go on with its own, or start a new run"
        )
    if asked.get("out-dir") and Path(str(asked["out-dir"])).absolute() != out_dir:
        raise CheckpointError(
            f"out-dir = {str(asked['out-dir'])!r}, but a resumed run goes on in its own folder, {out_dir}: leave it out"
        )
    free = {key: chosen[key] for key in asked if key in FREE}
    return Settings.from_flat({**stored, **free, "out-dir": str(out_dir)}).checked()


def in_todays_words(stored: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings of a checkpoint, also of one that an earlier release wrote."""
    values = dict(stored)
    if values.get("matu.preset") not in ("", *PRESETS):
        values["matu.preset"] = ""  # what it stood for stands in the checkpoint, key by key
    return values


# --- the federation ------------------------------------------------------------------------------------------------


def federation(clients: Iterable[Client]) -> dict[str, Any]:
    """Who holds what, as far as it decides the numbers: by client its partition and its tasks."""
    return {
        client.name: {
            "partition": client.partition,
            "tasks": {
                task: {
                    "classes": digests.of_json(info.classes)[: digests.SHORT],
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
    """Refuse a federation that is not the one of the checkpoint.

    Raises
    ------
    CheckpointError
        Another θ_p, clients that are missing or new, tasks with other images; each is named.
    """
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"the backbone has another θ_p or layout (fingerprint {fingerprint[:12]}…) than at the checkpoint of round "
            f"{checkpoint.round} ({checkpoint.fingerprint[:12]}…): weights file, release or CPU type differ"
        )
    found, expected = federation(clients), checkpoint.federation
    reasons = [f"client {name!r} is missing: start its node" for name in expected if name not in found]
    reasons += [f"client {name!r} was not there" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        reasons += _differences(name, expected[name], found[name])
    if reasons:
        raise CheckpointError(
            f"the federation is not the one of the checkpoint of round {checkpoint.round}:"
            + "".join(f"\n  {reason}" for reason in reasons)
        )


def _differences(client: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    reasons = []
    if found["partition"] != expected["partition"]:
        reasons.append(f"client {client!r} has partition {found['partition']}, expected {expected['partition']}")
    if found["tasks"].keys() != expected["tasks"].keys():
        return [*reasons, f"client {client!r} has tasks {list(found['tasks'])}, expected {list(expected['tasks'])}"]
    for task, facts in expected["tasks"].items():
        for what, value in facts.items():
            if found["tasks"][task][what] != value:
                reasons.append(
                    f"client {client!r}, task {task!r}: {what} {found['tasks'][task][what]!r}, expected {value!r}"
                )
    return reasons


# --- a run that keeps itself ---------------------------------------------------------------------------------------


class Keeper:
    """Writes a checkpoint after every round.

    Parameters
    ----------
    settings : Settings
        Of the run; `keep_checkpoints` = 0 writes none.
    recorder : Recorder
        Of the run.
    """

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self.settings = settings
        self.recorder = recorder

    def save(self, strategy: ManyTaskStrategy) -> None:
        """Write the checkpoint of the round that is done; of round 0 before the first."""
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
        """Put the strategy where the checkpoint is, and say so in the history.

        The checkpoint is written anew, as one of this attempt: should this one be cut off before its first round is
        done, the next one has to be told from it.
        """
        checkpoint = found.checkpoint
        check_federation(checkpoint, strategy.clients, strategy.model.fingerprint)
        strategy.resume(checkpoint.round, checkpoint.described, found.tensors)
        log(INFO, "going on after round %d of %d in %s", checkpoint.round, checkpoint.rounds, found.out_dir)
        self.recorder.observe(
            {
                "event": "resume",
                "time": now(),
                "run_id": str(run_id),
                "round": checkpoint.round,
                "attempt": strategy.attempt,
            }
        )
        self.save(strategy)
