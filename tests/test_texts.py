"""Texts: none is longer than a person reads, whichever exception carries it."""

import importlib
import inspect
import pickle
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import matu_flwr
from matu_flwr.texts import LONGEST, Brief, listed, printable, short, shortened, shown, some


def exceptions_of_the_package():
    for module in pkgutil.walk_packages(matu_flwr.__path__, "matu_flwr."):
        if module.name.rpartition(".")[2].startswith("triton"):
            continue  # needs a GPU's compiler, and has no exception
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__ == module.name and not name.startswith("_"):
                yield kind


def test_every_exception_keeps_its_text_short():
    kinds = set(exceptions_of_the_package())
    assert len(kinds) > 15
    for kind in kinds - {Brief}:
        assert issubclass(kind, Brief), f"{kind} must inherit matu_flwr.texts.Brief"
        error = kind("what happened " + "x" * 10**6 + " what to do")
        assert len(str(error)) == LONGEST
        assert str(error).startswith("what happened xxx")
        assert str(error).endswith("xxx what to do")
        again = pickle.loads(pickle.dumps(error))  # as it comes from another process
        assert (type(again), str(again)) == (kind, str(error))


@given(st.text(max_size=200), st.integers(40, 120))
def test_law_a_text_is_itself_or_as_long_as_it_may_be(text, most):
    found = shortened(text, most)
    assert found == text if len(text) <= most else len(found) == most
    assert shortened(found, most) == found


def test_names_by_hand():
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(range(7), 2) == "0, 1 and 5 more"
    assert listed([]) == ""
    assert some(["a", "b", "c"], 2, " and ") == "a and b and 1 more"
    assert some(["a", "b"], 2) == "a, b"


def test_what_is_shown_keeps_its_spaces():
    assert shown("a  b\x1b[2J\udcff") == "a  b\\x1b[2J\\udcff"
    assert short("x" * 100) == "'" + "x" * 76 + "..."


@pytest.mark.parametrize("length", [1, LONGEST, LONGEST + 1, 10**6])
def test_the_length_that_was_is_said(length):
    assert (f"({length} characters)" in shortened("y" * length)) == (length > LONGEST)


# --- text from elsewhere ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is, 🌱 ümläut θ_p", "as it is, 🌱 ümläut θ_p"),
        ("two\r\nlines\tand\u2028more\xa0\x85", "two lines and more"),
        ("\x1b[2J\x1b]0;title\x07red", r"\x1b[2J\x1b]0;title\x07red"),
        ("nothing\u202e wrong\u2066\u200b\ufeff", r"nothing\u202e wrong\u2066\u200b\ufeff"),
        ("half \ud800 a character", r"half \ud800 a character"),
        ("", ""),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 497 + "..."),
        ("\x1b" * 499, (r"\x1b" * 499)[:497] + "..."),
        ("x " * 10**6, ("x " * 250)[:497] + "..."),
    ],
)
def test_text_from_elsewhere_becomes_one_line_that_steers_nothing(text, shown):
    found = printable(text)
    assert found == shown
    assert found.isprintable()
    assert len(found) <= 500
    found.encode()


def test_the_limit_can_be_chosen():
    assert printable("abcdefghij", 5) == "ab..."


def test_no_exception_steers_a_terminal():
    for kind in set(exceptions_of_the_package()):
        assert str(kind("a\x1b[31mb\nc \u202e \ud800 é")) == "a\\x1b[31mb\nc \\u202e \\ud800 é"
        assert len(str(kind("\x1b" * 5000))) <= LONGEST
