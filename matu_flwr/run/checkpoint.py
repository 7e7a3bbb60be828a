"""Checkpoints: the whole state of a run's server after a round, in two files.

    <out-dir>/checkpoints/round-000007.safetensors    the strategy's tensors
    <out-dir>/checkpoints/round-000007.json           everything else, and the SHA-256 of both files

The JSON file is written last. A checkpoint counts only if both files are there and match their checksums; otherwise the
checkpoint before it is used. Each file is replaced in one step (`matu_flwr.files`). The checksums detect incomplete and
altered files, but not forged ones: whoever can write to the folder can also write new checksums.

The state of random generators need not be stored: every draw of a run gets a new seed, made of the run's seed, the
round, the client and the task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from matu_flwr import digests
from matu_flwr.files import TEMPORARY, replacing, sync_folder, write_json
from matu_flwr.run.history import HistoryMark

FOLDER = "checkpoints"
FORMAT = 1
STORED_AS = {"run_name": "experiment"}  # fields whose key in the file is another: the format is older than the name
NAME = re.compile(r"round-(\d+)\.json")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, found or read, or a run cannot resume from it; the text says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run's server after a round of training.

    Attributes
    ----------
    round : int
        Last finished round. 0 means that the clients are registered and no round has been trained yet.
    rounds : int
        Number of rounds of the whole run.
    attempt : int
        How often the run had been resumed.
    time : str
        When the checkpoint was written, in UTC, ISO 8601.
    run_name : str
        Name under which the clients keep their own state.
    fingerprint : str
        SHA-256 of the pre-trained weights θ_p and of the layout of a task vector.
    settings : dict
        All settings of the run, by flat key.
    federation : dict
        What each client holds, by client; see `run.resume.federation`.
    history : HistoryMark
        End of the history when the checkpoint was written. The accuracy of this round comes after it.
    seconds : float
        How long the run had taken so far.
    described : dict
        The strategy's state, with the names of its tensors in their places; see `federation.state`.
    """

    round: int
    rounds: int
    attempt: int
    time: str
    run_name: str
    fingerprint: str
    settings: dict[str, Any]
    federation: dict[str, Any]
    history: HistoryMark
    seconds: float
    described: dict[str, Any]


def checkpoint_path(out_dir: Path, round_: int) -> Path:
    """Return the path of the JSON file of a round's checkpoint."""
    return out_dir / FOLDER / f"round-{round_:06d}.json"


def checkpoints(out_dir: Path) -> list[Path]:
    """List the JSON files of a run's checkpoints, newest first, readable or not; empty if there are none."""
    folder = out_dir / FOLDER
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(out_dir: Path, state: Checkpoint, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write a checkpoint, then remove all but the last `keep` (1 or more). Returns the path of its JSON file.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be written, for instance because the disk is full. The one before is still there.
    """
    path = checkpoint_path(out_dir, state.round)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Checkpoints of later rounds are left from before the run was resumed at an earlier one. A later resume would
        # take them for the newest of this attempt.
        remove(out_dir, lambda round_: round_ > state.round)
        digest = _write_tensors(path.with_suffix(".safetensors"), tensors)
        content = {"format": FORMAT, **_plain(state), "tensors": digest}
        write_json(path, {**content, "sha256": digests.of_json(content)})
        # Old checkpoints go last, when the new one is safe.
        remove(out_dir, lambda round_: round_ <= state.round - keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of round {state.round} cannot be written to {path.parent}: {error}; make room there, then "
            f"resume from {out_dir}"
        ) from error
    return path


def remove(out_dir: Path, chosen: Callable[[int], bool]) -> None:
    """Remove the checkpoints of the rounds for which `chosen` is true, and files that a killed process left behind."""
    folder = out_dir / FOLDER
    for path in checkpoints(out_dir):
        if chosen(_round_of(path)):
            path.unlink()
    # The JSON files must be gone from the disk before their tensors: a JSON file alone is a broken checkpoint.
    sync_folder(folder)
    there = {path.stem for path in checkpoints(out_dir)}
    for path in folder.iterdir():
        if path.suffix == TEMPORARY or (path.suffix == ".safetensors" and path.stem not in there):
            path.unlink()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors in one step. Returns the SHA-256 of the file."""
    with replacing(path) as temporary:
        save_file(_without_shared_memory(tensors), temporary)
        return digests.of_file(temporary)


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, copying those that share memory with others, because safetensors refuses them."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        memory = plain.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(memory.data_ptr())
        found[name] = plain
    return found


def _plain(state: Checkpoint) -> dict[str, Any]:
    """Fields as they stand in the file."""
    return {STORED_AS.get(name, name): value for name, value in vars(state).items()} | {"history": vars(state.history)}


# --- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the JSON file of a checkpoint and check its checksum.

    Raises
    ------
    CheckpointError
        The file cannot be read, was altered, or was written by a release with another format.
    """
    try:
        content = json.loads(path.read_bytes())
        stored, found = content.pop("sha256"), digests.of_json(content)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({type(error).__name__}: {error})") from error
    if stored != found:
        raise CheckpointError(
            f"checkpoint {path} is incomplete or was changed: its SHA-256 is {found}, expected {stored}"
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {content['format']}, expected {FORMAT}: another release of matu-flwr wrote "
            "it; resume the run with that release"
        )
    fields = Checkpoint.__dataclass_fields__
    return Checkpoint(
        **{name: content[STORED_AS.get(name, name)] for name in fields if name != "history"},
        history=HistoryMark(**content["history"]),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors that belong to the JSON file `path` and check them against the checksum in it.

    Raises
    ------
    CheckpointError
        The tensors' file cannot be read, or was altered.
    """
    file = path.with_suffix(".safetensors")
    expected = json.loads(path.read_bytes())["tensors"]
    try:
        found = digests.of_file(file)
        if found != expected:
            raise CheckpointError(
                f"checkpoint {file} is incomplete or was changed: its SHA-256 is {found}, not {expected}"
            )
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {file} cannot be read ({error})") from error


def find_checkpoint(named: Path) -> tuple[Path, Checkpoint, dict[str, Tensor]]:
    """Find the checkpoint to resume from: the newest good one of a run, or exactly the one that is named.

    A broken checkpoint is skipped with a warning, and the one before it is taken. If the broken one was named, that is
    an error.

    Parameters
    ----------
    named : Path
        Output folder of a run, its folder of checkpoints, or one of the two files of a checkpoint.

    Returns
    -------
    tuple
        The run's output folder, the checkpoint, and its tensors by name.

    Raises
    ------
    CheckpointError
        No checkpoint can be used; the text lists what is wrong with each.
    """
    from flwr.common.logger import log

    if named.suffix in (".json", ".safetensors"):
        path = named.with_suffix(".json")
        return path.parent.parent, read_checkpoint(path), read_tensors(path)
    out_dir = named.parent if named.name == FOLDER else named
    if not out_dir.is_dir():
        raise CheckpointError(
            f"{out_dir} does not exist: expected the output folder of a run; give an absolute path (relative paths "
            f"start from the folder in which Flower runs, which is {Path.cwd()})"
        )
    found, reasons = checkpoints(out_dir), []
    for path in found:
        try:
            state, tensors = read_checkpoint(path), read_tensors(path)
        except CheckpointError as error:
            reasons.append(str(error))
            log(WARNING, "%s; trying the checkpoint before it", error)
            continue
        return out_dir, state, tensors
    if not found:
        raise CheckpointError(
            f"{out_dir} has no checkpoint: the run ended before its first round, or ran with keep-checkpoints = 0; "
            "start a new run"
        )
    raise CheckpointError("no checkpoint can be used:" + "".join(f"\n  {reason}" for reason in reasons))


def _round_of(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    assert found is not None, f"{path} comes from checkpoints()"
    return int(found[1])
