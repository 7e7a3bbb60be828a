"""The defaults in pyproject.toml are those of the settings, written by a command."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from matu_flwr.config.settings import DEFAULTS
from matu_flwr.config.toml import HEAD, as_toml, defaults_table, with_defaults

ROOT = Path(__file__).resolve().parents[2]


def flatten(table, prefix=""):
    flat = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def config_of(text):
    return flatten(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


def test_pyproject_is_current():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert with_defaults(text) == text, "the settings have changed: run `make settings`"


def test_what_is_written_are_the_defaults_in_their_order_and_types():
    written = config_of(defaults_table())
    assert list(written.items()) == list(DEFAULTS.items())
    assert [type(value) for value in written.values()] == [type(value) for value in DEFAULTS.values()]


@pytest.mark.parametrize(
    "after", ["", "\n[tool.other]\nkey = 1\n", "\n# about the other\n# one\n[tool.other]\nkey = 1\n"]
)
def test_only_that_table_is_replaced(after):
    before = "# mine\n[project]\nname = 'x'\n\n"
    old = f"# an old note\n{HEAD}\ngone = 1\n# gone too\n\n[tool.flwr.app.config.gone]\nseed = 3\n"
    found = with_defaults(before + old + after)
    assert found == before + defaults_table() + after
    assert with_defaults(found) == found


def test_a_file_without_the_table_is_refused():
    with pytest.raises(ValueError, match=r"found no table \[tool\.flwr\.app\.config\]: add that line"):
        with_defaults("[tool.flwr.app.config.matu]\nkappa = 3\n")


def test_the_command_rewrites_the_file(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[project]\nname = 'x'\n\n{HEAD}\nrounds = 3\n")
    subprocess.run([sys.executable, "-m", "matu_flwr.config.toml", str(file)], cwd=ROOT, check=True)
    assert config_of(file.read_text()) == DEFAULTS


def test_run_config_survives_toml():
    values = {"suite": 'it\'s "quoted" = ½', "rounds": 3, "seed": -1, "lr": 1e-05, "server-evaluate": False}
    text = as_toml({**values, "matu.rho": 0.4, "matu.kappa": 3})
    assert tomllib.loads(text) == {**values, "matu": {"rho": 0.4, "kappa": 3}}
