"""What a client keeps for itself between rounds, such as local heads and personal models.

It is kept in files, not in Flower's `context.state`. Flower sends that after the reply, in one piece, from a process
that it ends five seconds later, so a large state would be lost silently. A file is either complete or not there at all.
It says which client saved it in which round, so a state of another client or of a later round is refused.

A server that died is resumed from a checkpoint, so a client may be asked to train a round again. It then starts from
the state it had before that round. For this, it keeps files for as many rounds back as the server keeps checkpoints.

    <state-dir>/<run name>/<client>/round-000007.safetensors
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from matu_flwr.files import PRIVATE, private_folder, write_bytes
from matu_flwr.texts import Brief

VERSION = re.compile(r"round-(\d+)\.safetensors")


class StateError(Brief, RuntimeError):
    """A client's own file is damaged, missing, from another client, or from a later round than expected."""


@dataclass(frozen=True)
class _Stamp:
    """Who saved a file, and when. `first` is the first round that the client saved in this run."""

    # The name of the run. The key is called so in files of earlier releases, which are still read.
    experiment: str
    client: str
    round: int
    attempt: int
    first: int


class ClientState:
    """The persistent tensors of one client in one run.

    Parameters
    ----------
    root : Path
        The node's state folder.
    run_name : str
        Name of the run, unique for each run. A resumed run keeps its name.
    client : str
        The client's name.
    attempt : int
        How often the run was resumed. Files that an earlier attempt saved in rounds trained again are replaced.
    history : int
        How many rounds a resumed run may go back. The files that this needs are kept. 0 = only the last one is.
    """

    def __init__(self, root: Path, run_name: str, client: str, *, attempt: int = 0, history: int = 0) -> None:
        for what, name in (("run", run_name), ("client", client)):
            if not name or name in (".", "..") or set(name) & set("/\\\0"):
                raise StateError(f"{what} name {name!r} cannot name a file: expected 1 or more characters, no slashes")
        self.run_name = run_name
        self.client = client
        self.attempt = attempt
        self.history = history
        self.folder = root / run_name / client

    def path(self, round_: int) -> Path:
        """The file of a round."""
        return self.folder / f"round-{round_:06d}.safetensors"

    def rounds(self) -> list[int]:
        """Rounds for which there is a file, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := VERSION.fullmatch(path.name)))

    def save(self, tensors: Mapping[str, Tensor], round_: int) -> None:
        """Write `tensors` as the state after a round. The file is written whole or not at all.

        Files of later rounds, which an earlier attempt left behind, are removed. So are those that no resumed run can
        need.
        """
        known = self.rounds()
        first = min(round_, self._stamp(known[0]).first) if known else round_
        stamp = _Stamp(self.run_name, self.client, round_, self.attempt, first)
        data = save(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, {"stamp": json.dumps(asdict(stamp))}
        )
        private_folder(self.folder)
        write_bytes(self.path(round_), data, mode=PRIVATE)
        for other in self._superfluous(known, round_):
            self.path(other).unlink(missing_ok=True)

    def _superfluous(self, known: list[int], round_: int) -> list[int]:
        """Rounds to remove: later ones, and those before the newest that is at least `history` rounds old."""
        oldest = max((r for r in (*known, round_) if r <= round_ - self.history), default=0)
        return [r for r in known if r > round_ or r < oldest]

    def load(self, *, before: int, since: int = 0) -> dict[str, Tensor]:
        """Read the tensors of the last round before `before`. Empty if the client had not trained until then.

        Parameters
        ----------
        before : int
            The round that is to be trained, or one more than the round that is to be tested.
        since : int
            The last round for which the server has this client's reply. The state must be from then or later.

        Raises
        ------
        StateError
            The file cannot be read, is missing, or belongs to another client; or another run, or a later attempt of
            this one, saved a file in round `before` or later.
        """
        known = self.rounds()
        earlier, later = [r for r in known if r < before], [r for r in known if r >= before]
        for round_ in later[-1:] or earlier[-1:]:
            self._check_attempt(self._stamp(round_), before)
        if later and not earlier and (first := self._stamp(later[0]).first) < before:
            raise StateError(
                f"client {self.client!r}: its state before round {before} is gone, {self.folder} has rounds {known} "
                f"and round {first} was its first: resume from a later checkpoint"
            )
        newest = earlier[-1] if earlier else 0
        if newest < since:
            raise StateError(
                f"client {self.client!r}: {self.folder} has {f'the state of round {newest}' if newest else 'no state'} "
                f"before round {before}, expected that of round {since}, because the server has the reply to it: "
                "state-dir was changed or lost; put it back, or start a new run"
            )
        if not newest:
            return {}
        self._stamp(newest)
        try:
            with safe_open(self.path(newest), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except SafetensorError as error:
            raise self._unreadable(newest, error) from error

    def _check_attempt(self, stamp: _Stamp, before: int) -> None:
        if stamp.attempt > self.attempt:
            raise StateError(
                f"client {self.client!r}: its state file {self.path(stamp.round)} was saved by attempt "
                f"{stamp.attempt} of this run, and attempt {self.attempt} asks for it: the run was resumed while an "
                "earlier server was still at work; stop that server"
            )
        if stamp.round >= before and stamp.attempt == self.attempt:
            raise StateError(
                f"client {self.client!r}: its state file {self.path(stamp.round)} was saved in round {stamp.round}, "
                f"expected a round before {before}: another run uses the same name {self.run_name!r}"
            )

    def _stamp(self, round_: int) -> _Stamp:
        try:
            with safe_open(self.path(round_), framework="pt") as file:
                stamp = _Stamp(**json.loads(file.metadata()["stamp"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable(round_, error) from error
        found = (stamp.experiment, stamp.client)
        if found != (self.run_name, self.client):
            raise StateError(
                f"state file {self.path(round_)} is of client {found[1]!r} of run {found[0]!r}, "
                f"expected {self.client!r} of run {self.run_name!r}"
            )
        return stamp

    def _unreadable(self, round_: int, error: Exception) -> StateError:
        return StateError(
            f"client {self.client!r}: its state file {self.path(round_)} cannot be read ({error}); remove it to go on "
            "from the round before, if that is still there"
        )
