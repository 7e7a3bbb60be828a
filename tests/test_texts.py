"""Texts: none is longer than a person reads, whichever exception carries it."""

import importlib
import inspect
import pickle
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import matu_flwr
from matu_flwr.texts import LONGEST, Brief, listed, printable, short, shortened


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
    assert short("x" * 100) == "'" + "x" * 76 + "..."


@pytest.mark.parametrize("length", [1, LONGEST, LONGEST + 1, 10**6])
def test_the_length_that_was_is_said(length):
    assert (f"({length} characters)" in shortened("y" * length)) == (length > LONGEST)


# --- text from other machines ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – text, Süd", "plain – text, Süd"),
        ("two\nlines\r\nand\ta tab", "two lines and a tab"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("turned \u202e round", "turned \\u202e round"),
        ("\x00\x07\x9b", "\\x00\\x07\\x9b"),
        ("half \ud800", "half \\ud800"),
        ("", ""),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 497 + "..."),
    ],
)
def test_a_text_of_another_machine_is_one_clean_line(text, shown):
    assert printable(text) == shown


def test_a_long_text_is_cut():
    assert printable("word " * 10**6, 20) == "word word word wo..."
    assert len(printable("\x1b" * 10**6, 100)) == 100
    assert printable(" " * 10**6 + "end", 100).endswith("...")
