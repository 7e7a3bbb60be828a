"""Checkpoints: the whole state of a run's server after a round, in two files that are there whole or not at all.

    <out-dir>/checkpoints/round-000007.safetensors    the strategy's tensors
    <out-dir>/checkpoints/round-000007.json           everything else, the SHA-256 of the tensors' file, and its own

The JSON file is written last and makes the checkpoint: without it, or if one of the two is not what the checksums say,
there is none, and the one before counts. Each file is there whole or not at all (`matu_flwr.files`). Checksums find
torn and altered files; who can write the folder can also forge them.

No random generator is stored: every draw of a run is seeded anew by its seed, round, client and task.
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
    """A checkpoint that cannot be written, found, read, or gone on from; the text says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run's server after a round of training.

    Attributes
    ----------
    round : int
        The last finished one; 0 = none, the clients are registered.
    rounds : int
        Of the whole run.
    attempt : int
        How often the run had been resumed.
    time : str
        When it was written, UTC, ISO 8601.
    run_name : str
        Name under which the clients keep their own state.
    fingerprint : str
        Of θ_p and the layout of a task vector.
    settings : dict
        All of them, by flat key.
    federation : dict
        By client what it holds: see `run.resume.federation`.
    history : HistoryMark
        Events up to here; the test of this round comes later.
    seconds : float
        That the run had taken.
    described : dict
        The strategy's state, with names of tensors; see `federation.state`.
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
    """The JSON file of a round's checkpoint."""
    return out_dir / FOLDER / f"round-{round_:06d}.json"


def checkpoints(out_dir: Path) -> list[Path]:
    """JSON files of a run's checkpoints, the newest first, whether they can be read or not."""
    folder = out_dir / FOLDER
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(out_dir: Path, state: Checkpoint, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write a checkpoint, then remove all but the last `keep` (1 or more); returns its JSON file.

    Raises
    ------
    CheckpointError
        It cannot be written, on a full disk for instance. The one before is still there.
    """
    path = checkpoint_path(out_dir, state.round)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(out_dir, lambda round_: round_ > state.round)  # of an attempt that went on from here before
        digest = _write_tensors(path.with_suffix(".safetensors"), tensors)
        content = {"format": FORMAT, **_plain(state), "tensors": digest}
        write_json(path, {**content, "sha256": digests.of_json(content)})
        remove(out_dir, lambda round_: round_ <= state.round - keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of round {state.round} cannot be written to {path.parent}: {error}; make room there, then "
            f"resume from {out_dir}"
        ) from error
    return path


def remove(out_dir: Path, chosen: Callable[[int], bool]) -> None:
    """Remove the checkpoints of the rounds that `chosen` says, and what a killed process left half-written."""
    folder = out_dir / FOLDER
    for path in checkpoints(out_dir):
        if chosen(_round_of(path)):
            path.unlink()
    sync_folder(folder)
    there = {path.stem for path in checkpoints(out_dir)}
    for path in folder.iterdir():
        if path.suffix == TEMPORARY or (path.suffix == ".safetensors" and path.stem not in there):
            path.unlink()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors, atomically; returns the SHA-256 of the file."""
    with replacing(path) as temporary:
        save_file(_of_their_own(tensors), temporary)
        return digests.of_file(temporary)


def _of_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied only where two share memory: safetensors refuses these."""
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
    """The JSON part of a checkpoint, checked against its checksum.

    Raises
    ------
    CheckpointError
        No such file, or not the one that was written.
    """
    try:
        content = json.loads(path.read_bytes())
        stored, found = content.pop("sha256"), digests.of_json(content)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({type(error).__name__}: {error})") from error
    if stored != found:
        raise CheckpointError(f"checkpoint {path} is torn or was changed: its SHA-256 is {found}, expected {stored}")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {content['format']}, expected {FORMAT}: it is of another release"
        )
    fields = Checkpoint.__dataclass_fields__
    return Checkpoint(
        **{name: content[STORED_AS.get(name, name)] for name in fields if name != "history"},
        history=HistoryMark(**content["history"]),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of the checkpoint with the JSON file `path`, checked against its checksum.

    Raises
    ------
    CheckpointError
        They are not the ones that were written.
    """
    file = path.with_suffix(".safetensors")
    expected = json.loads(path.read_bytes())["tensors"]
    try:
        found = digests.of_file(file)
        if found != expected:
            raise CheckpointError(f"checkpoint {file} is torn or was changed: its SHA-256 is {found}, not {expected}")
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {file} cannot be read ({error})") from error


def find_checkpoint(named: Path) -> tuple[Path, Checkpoint, dict[str, Tensor]]:
    """The checkpoint to go on from: the last good one of a run's folder, or the one that is named.

    One that is broken is passed over aloud; if it was named itself, it is refused.

    Parameters
    ----------
    named : Path
        Output folder of a run, its folder of checkpoints, or a file of one of them.

    Returns
    -------
    tuple
        The run's output folder, the checkpoint, and its tensors by name.

    Raises
    ------
    CheckpointError
        None can be used; the text lists what is wrong with each.
    """
    from flwr.common.logger import log

    if named.suffix in (".json", ".safetensors"):
        path = named.with_suffix(".json")
        return path.parent.parent, read_checkpoint(path), read_tensors(path)
    out_dir = named.parent if named.name == FOLDER else named
    if not out_dir.is_dir():
        raise CheckpointError(
            f"{out_dir} does not exist: expected the output folder of a run; give an absolute path (relative ones are "
            f"resolved where Flower runs, here {Path.cwd()})"
        )
    found, reasons = checkpoints(out_dir), []
    for path in found:
        try:
            state, tensors = read_checkpoint(path), read_tensors(path)
        except CheckpointError as error:
            reasons.append(str(error))
            log(WARNING, "%s; taking the one before", error)
            continue
        return out_dir, state, tensors
    if not found:
        raise CheckpointError(
            f"{out_dir} has no checkpoint: the run ended before its first round, or ran with keep-checkpoints = 0; "
            "start it anew"
        )
    raise CheckpointError("no checkpoint can be used:" + "".join(f"\n  {reason}" for reason in reasons))


def _round_of(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    assert found is not None, f"{path} comes from checkpoints()"
    return int(found[1])
