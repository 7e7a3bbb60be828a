"""What a client keeps for itself between rounds: local heads, personal models.

Files, not Flower's `context.state`: that is pushed after the reply, in one piece, by a process that is ended five
seconds later, so large state is lost in silence. A file is written under a temporary name, flushed to disk and renamed;
it carries the round that wrote it, and a state from the future or of another client is refused.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class StateError(RuntimeError):
    """A client's own file that is torn, of another client, or from a later round than the one that reads it."""


class ClientState:
    """The persistent tensors of one client in one experiment.

    Parameters
    ----------
    root : Path
        The node's state folder.
    experiment : str
        One federation: a new run is a new experiment, a resumed run is the same one.
    client : str
        The client's name.
    """

    def __init__(self, root: Path, experiment: str, client: str) -> None:
        for what, name in (("experiment", experiment), ("client", client)):
            if not name or name in (".", "..") or set(name) & set("/\\\0"):
                raise StateError(f"{what} name {name!r} cannot name a file: expected 1 or more characters, no slashes")
        self.experiment = experiment
        self.client = client
        self.path = root / experiment / f"{client}.safetensors"

    def save(self, tensors: Mapping[str, Tensor], round_: int) -> None:
        """Replace the state by `tensors`, stamped with the round that made them; atomic."""
        stamp = {"experiment": self.experiment, "client": self.client, "round": round_}
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"stamp": json.dumps(stamp)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.client}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)  # noqa: PTH105  # the temporary name is a string from mkstemp
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, *, before: int) -> dict[str, Tensor]:
        """Read the tensors that a round earlier than `before` saved; empty before the first save.

        Raises
        ------
        StateError
            The file cannot be read, belongs to another client, or was saved in round `before` or later.
        """
        if not self.path.exists():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                stamp = json.loads(file.metadata()["stamp"])
                found, saved = (stamp["experiment"], stamp["client"]), int(stamp["round"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"client {self.client!r}: its state file {self.path} cannot be read ({error}); remove it to start anew"
            ) from error
        if found != (self.experiment, self.client):
            raise StateError(
                f"state file {self.path} is of client {found[1]!r} in experiment {found[0]!r}, "
                f"expected {self.client!r} in {self.experiment!r}"
            )
        if saved >= before:
            raise StateError(
                f"client {self.client!r}: its state file {self.path} was saved in round {saved}, expected a "
                f"round before {before}: another run uses the same experiment name {self.experiment!r}"
            )
        return tensors
