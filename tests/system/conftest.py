import pytest

from tests.support.federation import tiny_values
from tests.support.simulation import simulate


@pytest.fixture(scope="session")
def simulation(tmp_path_factory):
    """A finished run of two nodes, two actors and two rounds. Several tests look at it: write nothing into it."""
    folder = tmp_path_factory.mktemp("simulation")
    return simulate(tiny_values(folder, rounds=2), folder / "run")
