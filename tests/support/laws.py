"""How many cases a law is tried with: the profiles of Hypothesis, and counts that follow them."""

import os

from hypothesis import HealthCheck, settings

# Cases of a law that says nothing else. `dev` is for `make test`; `ci` for `.ci/run`, and for whoever changes a law;
# `soak` for `make fuzz`: more than 100,000 damaged payloads.
PROFILES = {"dev": 25, "ci": 100, "soak": 6_000}


def load_profile() -> None:
    """Take the profile that MATU_HYPOTHESIS_PROFILE names. A busy machine is no failure: no test is judged by time."""
    for name, cases in PROFILES.items():
        settings.register_profile(name, max_examples=cases, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile(os.environ.get("MATU_HYPOTHESIS_PROFILE", "dev"))


def examples(count: int) -> settings:
    """`count` cases under the profile `ci`; under another in proportion, but not fewer than ten."""
    wanted = count * settings().max_examples // PROFILES["ci"]
    return settings(max_examples=max(wanted, min(count, 10)))
