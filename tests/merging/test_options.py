"""The switches: their defaults are the documented reading, and what is no choice is refused."""

import pytest

from matu_flwr.merging import MergeError, MergeOptions


def test_defaults_are_our_reading_of_the_published_method():
    options = MergeOptions()
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
