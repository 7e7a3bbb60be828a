import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no test is judged by its time.
settings.register_profile("matu", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("matu")

# Two cores share tests, simulations and SuperNodes; sums over blocks do not depend on this, training does.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Flower's processes want all cores: `make test` gives these tests to one worker."""
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.xdist_group("system"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Nothing that a test runs reads or writes the user's own cache and state."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "xdg-state"))
