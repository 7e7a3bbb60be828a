"""Folders of this machine, and what is said where there is no home for them."""

import os
import pwd

import pytest

from matu_flwr.config import paths
from matu_flwr.config.settings import Settings, SettingsError

FOLDERS = {"cache-dir": "XDG_CACHE_HOME", "state-dir": "XDG_STATE_HOME", "MATU_WEIGHTS_DIR": "XDG_CACHE_HOME"}


def folder(setting):
    if setting == "MATU_WEIGHTS_DIR":
        return paths.weights_dir()
    return (paths.cache_dir if setting == "cache-dir" else paths.state_dir)(Settings())


@pytest.fixture
def nobody(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    for name in ("HOME", "MATU_WEIGHTS_DIR", *FOLDERS.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("setting", FOLDERS)
def test_without_a_home_the_setting_is_named(nobody, setting):
    with pytest.raises(SettingsError) as refusal:
        folder(setting)
    assert str(refusal.value) == (
        f"{setting} is not set, and there is no home folder to put it into: HOME is not set, and the user "
        f"{os.getuid()} is not known on this machine; set {setting}, or the environment variable {FOLDERS[setting]} "
        "or HOME"
    )


@pytest.mark.parametrize("setting", FOLDERS)
def test_without_a_home_a_named_folder_is_used(nobody, monkeypatch, tmp_path, setting):
    monkeypatch.setenv(FOLDERS[setting], str(tmp_path))
    assert folder(setting).is_relative_to(tmp_path / "matu-flwr")


@pytest.mark.parametrize("setting", FOLDERS)
def test_a_relative_folder_of_xdg_does_not_count(monkeypatch, tmp_path, setting):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MATU_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv(FOLDERS[setting], "relative")
    assert folder(setting).is_relative_to(tmp_path)
