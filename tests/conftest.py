import os

import pytest
import torch

from tests.support.laws import load_profile

load_profile()

# Two cores share tests, simulations and SuperNodes; sums over blocks do not depend on this, training does.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Flower's processes want all cores: these tests go to one worker, and begin at once, because they take longest."""
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.xdist_group("system"))
    items.sort(key=lambda item: item.get_closest_marker("system") is None)


@pytest.fixture(scope="session", autouse=True)
def decoded(tmp_path_factory):
    """Folder of decoded images for all workers of this call of pytest: read it as often as you like, and break nothing.

    The small federations find it by the environment.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "decoded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATU_TEST_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Nothing that a test runs reads or writes the user's own cache and state."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-state"))
