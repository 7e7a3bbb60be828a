"""The switches: their defaults are those of a run, and what is no choice is refused."""

from dataclasses import fields, replace
from inspect import signature

import pytest

from matu_flwr.config.sections import MatuSettings
from matu_flwr.config.settings import PRESETS, Settings
from matu_flwr.merging import PAPER, MergeError, MergeOptions, unify


def test_our_reading_of_the_published_method():
    options = MergeOptions.paper()
    assert (options.rho, options.kappa, options.epsilon, options.epsilon_unit) == (0.4, 3, 0.5, "similarity")
    assert (options.agreement, options.similarity, options.signs) == ("threshold-or-soft", "all", "masked")
    assert (options.relation_weight, options.combine) == ("similarity", "mean")


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("rho", -0.1, r"rho = -0.1 is outside \[0, 1\]"),
        ("rho", 1.1, r"rho = 1.1 is outside \[0, 1\]"),
        ("rho", float("nan"), r"rho = nan is outside \[0, 1\]"),
        ("kappa", -1, "kappa = -1: expected a whole number ≥ 0"),
        ("kappa", 2.5, "kappa = 2.5: expected a whole"),
        ("epsilon", float("nan"), "epsilon is NaN"),
        ("epsilon_unit", "sigma", r"epsilon_unit = 'sigma': expected one of \['similarity', 'z'\]"),
        ("agreement", "threshold", r"agreement = 'threshold': expected one of \['threshold-or-soft', 'hard', "),
        ("similarity", "cosine", r"similarity = 'cosine': expected one of \['all', 'support'\]"),
        ("signs", "full", r"signs = 'full': expected one of \['masked', 'complete'\]"),
        ("relation_weight", "one", r"relation_weight = 'one': expected one of \['similarity', 'excess'\]"),
        ("combine", "max", r"combine = 'max': expected one of \['mean', 'sum'\]"),
        ("combine", None, r"combine = None: expected one of"),
    ],
)
def test_options_refuse(field, value, text):
    with pytest.raises(MergeError, match=text):
        MergeOptions(**{field: value})


@pytest.mark.parametrize("field_value", [("rho", 0), ("rho", 1), ("kappa", 0), ("epsilon", -3.0), ("epsilon", 9.0)])
def test_options_accept_the_ends_of_their_ranges(field_value):
    field, value = field_value
    assert getattr(MergeOptions(**{field: value}), field) == value


def test_defaults_are_those_of_a_run():
    settings = MatuSettings()
    assert MergeOptions() == MergeOptions(
        **{field.name: getattr(settings, field.name) for field in fields(MergeOptions)}
    )
    defaults = {name: parameter.default for name, parameter in signature(unify).parameters.items()}
    assert defaults["magnitude"] == settings.magnitude
    assert defaults["reconstruction"] == settings.reconstruction


def test_the_published_method_is_the_preset_of_a_run():
    settings = Settings.from_flat(PRESETS["paper"]).matu
    published = {field.name: getattr(settings, field.name) for field in fields(MergeOptions)}
    assert MergeOptions.paper() == MergeOptions(**published)
    assert {"magnitude": settings.magnitude, "reconstruction": settings.reconstruction} == PAPER


def test_the_published_method_with_another_switch():
    assert MergeOptions.paper(kappa=0) == replace(MergeOptions.paper(), kappa=0)
    assert MergeOptions.paper(kappa=0) != MergeOptions.paper()


@pytest.mark.parametrize(("name", "value"), [("rho", "0.4"), ("rho", True), ("epsilon", None), ("kappa", True)])
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(MergeError, match=rf"{name} = {value!r}: expected a (whole )?number"):
        MergeOptions(**{name: value})
