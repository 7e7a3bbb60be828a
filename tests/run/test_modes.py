"""Who may read what a run leaves: its results as the umask says, what a client keeps for itself its owner only."""

import os
import stat

from tests.support.federation import tiny_values
from tests.support.whole_run import run


def test_a_run_s_files_follow_the_umask_and_the_clients_are_their_owner_s(tmp_path):
    values = tiny_values(tmp_path, rounds=1, strategy="fedper", train__steps=1, cache_dir=str(tmp_path / "cache"))
    before = os.umask(0o027)
    try:
        run(tmp_path / "run", values, nodes=2)
    finally:
        os.umask(before)
    found = {
        name: {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in everything(tmp_path / name)}
        for name in ("run", "state", "cache")
    }
    assert found == {
        "run": {(True, 0o750), (False, 0o640)},
        "state": {(True, 0o700), (False, 0o600)},
        "cache": {(True, 0o750), (False, 0o640)},
    }
    assert [path.name for path in everything(tmp_path / "run") if path.suffix == ".safetensors"]


def everything(folder):
    # Locks are empty, and another user may have to take them.
    return [path for path in (folder, *folder.rglob("*")) if not path.name.endswith(".lock")]
