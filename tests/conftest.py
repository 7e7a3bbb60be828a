import os
from pathlib import Path

import pytest
import torch

# Two cores share tests, simulations and SuperNodes; sums over blocks do not depend on this, training does.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Nothing that a test runs reads or writes the user's own cache and state."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-state"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where there is none."""
    folder = os.environ.get("MATU_DATA_DIR")
    if not folder:
        pytest.skip("MATU_DATA_DIR is not set: no real data sets on this machine")
    return Path(folder)
