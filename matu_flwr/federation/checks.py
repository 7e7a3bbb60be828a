"""Checks of the settings against the method: for every method, and for the methods that call them."""

from __future__ import annotations

from collections.abc import Sequence

from matu_flwr.config.sections import RobustSettings
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.base import ManyTaskStrategy


def refuse_frozen_heads(settings: Settings) -> None:
    """Refuse frozen heads, for methods that are about training heads.

    Raises
    ------
    SettingsError
        `train.heads` = zero-shot.
    """
    if settings.train.heads == "zero-shot":
        raise SettingsError(
            f"strategy {settings.strategy!r} is about training heads, and train.heads = zero-shot freezes them: set "
            "train.heads = average or local"
        )


def check_min_clients(strategy: type[ManyTaskStrategy], settings: Settings) -> None:
    """Refuse `min-clients` where a round does not change tasks one by one.

    Raises
    ------
    SettingsError
        The method has one model for all tasks, or sends nothing.
    """
    if settings.min_clients == 1:
        return
    why = "has one vector for all tasks" if strategy.rule.one_vector else ""
    why = "sends nothing to merge" if strategy.rule.payload(settings, settings.rounds) == "nothing" else why
    if why:
        raise SettingsError(
            f"min-clients = {settings.min_clients}: strategy {settings.strategy!r} {why}, so that no task can be left "
            "as it is; set min-nodes, which counts the replies of a round"
        )


def check_guards(strategy: type[ManyTaskStrategy], settings: Settings, private: Sequence[str]) -> None:
    """Refuse robust aggregation and privacy where they would have nothing to act on.

    Parameters
    ----------
    strategy : type of ManyTaskStrategy
        The method of the run.
    settings : Settings
        All settings of the run.
    private : sequence of str
        Names of the strategies whose clients can clip and noise their updates, for the text of the error.

    Raises
    ------
    SettingsError
        The text names the setting and the strategy.
    """
    rule, name, robust = strategy.rule, settings.strategy, settings.robust
    if robust != RobustSettings() and rule.payload(settings, settings.rounds) == "nothing":
        raise SettingsError(
            f"settings of robust.* are given, but strategy {name!r} sends nothing to bound: remove them"
        )
    if robust.mean != "weighted" and not strategy.robust_mean:
        raise SettingsError(
            f"robust.mean = {robust.mean!r}: strategy {name!r} takes no mean over a task's holders; remove it, "
            "or use robust.clip-factor and robust.clip-norm, which bound its updates all the same"
        )
    if settings.privacy.noise_multiplier > 0 and not rule.separate_updates:
        raise SettingsError(
            f"privacy.noise-multiplier > 0 with strategy {name!r}: noise protects a client only where a round makes "
            f"one update per task and nothing else is kept or sent; choose one of: {', '.join(private)}"
        )
