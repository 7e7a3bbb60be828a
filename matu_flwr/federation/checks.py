"""What may be asked of a strategy: settings against the method, for every method and for some of them."""

from __future__ import annotations

from collections.abc import Sequence

from matu_flwr.config.sections import RobustSettings
from matu_flwr.config.settings import Settings, SettingsError
from matu_flwr.federation.base import ManyTaskStrategy


def refuse_frozen_heads(settings: Settings) -> None:
    """For methods that mean nothing with frozen heads.

    Raises
    ------
    SettingsError
        `train.heads` = zero-shot.
    """
    if settings.train.heads == "zero-shot":
        raise SettingsError(
            f"strategy {settings.strategy!r} is about training heads, and train.heads = zero-shot freezes them: take "
            "train.heads = average or local"
        )


def check_guards(strategy: type[ManyTaskStrategy], settings: Settings, private: Sequence[str]) -> None:
    """Refuse robust aggregation and privacy where there is nothing for them to act on; `private` names who can noise.

    Raises
    ------
    SettingsError
        The text names the setting and the strategy.
    """
    rule, name, robust = strategy.rule, settings.strategy, settings.robust
    if robust != RobustSettings() and rule.payload(settings, settings.rounds) == "nothing":
        raise SettingsError(f"robust.* is given, and strategy {name!r} sends nothing that could be bounded: remove it")
    if robust.mean != "weighted" and not strategy.robust_mean:
        raise SettingsError(
            f"robust.mean = {robust.mean!r}: strategy {name!r} takes no mean over a task's holders; remove it, "
            "robust.clip-factor and robust.clip-norm work"
        )
    if settings.privacy.noise_multiplier > 0 and not rule.separate_updates:
        raise SettingsError(
            f"privacy.noise-multiplier > 0 with strategy {name!r}: clients clip and noise where each round makes one "
            f"update per task, and nothing else of it is kept or sent: {', '.join(private)}"
        )
