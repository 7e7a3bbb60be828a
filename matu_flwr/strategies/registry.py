"""Strategies by name. To add a method, write one file beside this one and add one line to `config.methods.CLASSES`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from matu_flwr.config.methods import CLASSES, check_method
from matu_flwr.config.settings import DEFAULTS, Settings, SettingsError
from matu_flwr.federation.base import ManyTaskStrategy
from matu_flwr.federation.checks import check_guards, check_min_clients
from matu_flwr.federation.model_info import ModelInfo

METHODS: dict[str, type[ManyTaskStrategy]] = {
    name: getattr(import_module(f"matu_flwr.strategies.{module}"), kind) for name, (module, kind) in CLASSES.items()
}
"""The class of each method. It says what the method is, which options it has, and which settings it refuses."""


def available() -> dict[str, str]:
    """Names of all strategies, each with a short description."""
    return {name: strategy.about for name, strategy in METHODS.items()}


def method(name: str) -> type[ManyTaskStrategy]:
    """The class of the strategy with this name.

    Raises
    ------
    SettingsError
        There is no such strategy. The text names the nearest match and lists all names.
    """
    check_method(name, METHODS)
    return METHODS[name]


def prepared(settings: Settings) -> Settings:
    """Add to the settings what the method sets, and check them against what the method needs.

    Raises
    ------
    SettingsError
        The strategy is unknown; an option of another strategy was given; the method needs a value that nobody gave; or
        it refuses a value that somebody gave.
    """
    chosen = method(settings.strategy)
    flat, given = settings.flat(), settings.given()
    for name, other in METHODS.items():
        for key, value in flat.items():
            foreign = other.section and other.section != chosen.section and key.startswith(f"{other.section}.")
            # A foreign option does nothing. Whoever sets one expects something of it, so it is an error.
            if foreign and value != DEFAULTS[key]:
                raise SettingsError(
                    f"setting {key!r} = {value!r} is an option of strategy {name!r}, not of {settings.strategy!r}: "
                    f"remove it, or choose strategy = {name}"
                )
    for key, value in chosen.sets.items():
        if flat[key] != value and key in given:
            raise SettingsError(
                f"strategy {settings.strategy!r} sets {key} = {value!r}, found {flat[key]!r}: remove that setting"
            )
    settings = Settings.from_flat({**flat, **chosen.sets}).checked()
    chosen.check(settings)
    check_min_clients(chosen, settings)
    check_guards(chosen, settings, [name for name, other in METHODS.items() if other.rule.separate_updates])
    return settings


def create(name: str, settings: Settings, model: ModelInfo, **arguments: Any) -> ManyTaskStrategy:
    """Build the strategy with this name. `arguments` go to its constructor (`run_name`, `observer` and others)."""
    return method(name)(settings, model, **arguments)
