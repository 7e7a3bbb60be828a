"""Names of clients, tasks and classes: which are allowed, and which two are one to a reader or to a file system."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.names import clashing, composed, folded, is_class_name, is_name, repeated_class
from tests.support.laws import examples


@pytest.mark.parametrize("name", ["north", "Klinik Süd", "日本-3", "a.b", "client-000", "x" * 200, "שלום", "7"])
def test_names_that_people_give(name):
    assert is_name(name)
    assert is_class_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *["", " ", ".", "..", ".x", "a/b", "a\\b", "a ", " a", "a\n", "\x1b[2J", "a\u202eb", "a\u200bb", "u\u0308"],
        *["\u0308", "\u3164", "a\ufe0f", "x" * 201, "日" * 67, "\ud800", "a\x00", "a\u00a0b"],
    ],
)
def test_names_that_no_file_or_line_should_have(name):
    assert not is_name(name)


@pytest.mark.parametrize("name", ["a/b", "C++", "great white shark, white shark", "... other", "\u2764\ufe0f", "<b>"])
def test_class_names_are_text_and_may_hold_more(name):
    assert is_class_name(name)


@pytest.mark.parametrize("name", ["", " ", "a ", "\u3164", "\ufe0f", "a\n", "\x1b", "u\u0308", "x" * 501, "\ud800"])
def test_class_names_can_be_seen(name):
    assert not is_class_name(name)


@pytest.mark.parametrize(
    ("one", "other"), [("North", "north"), ("straße", "STRASSE"), ("ﬁn", "fin"), ("ｍnist", "mnist")]
)
def test_names_that_are_one_on_some_file_system(one, other):
    assert folded(one) == folded(other)
    assert clashing(["x", one, other]) == (one, other)
    assert clashing([one, "x", one]) is None


def test_a_class_stands_there_once():
    assert repeated_class(["a", "A", "b"]) is None
    assert repeated_class(["a", "b", "a"]) == "a"
    assert repeated_class(["\u2764", "\u2764\ufe0f"]) == "\u2764\ufe0f"


@examples(300)
@given(st.text(max_size=8))
def test_a_name_is_safe_as_a_file_name(name):
    if is_name(name):
        assert 0 < len(name.encode()) <= 200
        assert name == name.strip() == unicodedata.normalize("NFC", name)
        assert not {unicodedata.category(char) for char in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        assert name not in (".", "..")
        assert "/" not in name
        assert folded(folded(name)) == folded(name)


def test_a_composed_name_is_written_in_one_way():
    assert composed(" e\u0301tude ") == composed("\u00e9tude") == "\u00e9tude"
