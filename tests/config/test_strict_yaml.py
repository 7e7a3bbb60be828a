import math
import os

import pytest
import yaml

from matu_flwr.config.strict_yaml import DEEPEST, LARGEST, YamlError, read_yaml, read_yaml_file
from matu_flwr.tasks import available_suites


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "- a\n- b",
        "a: {b: [1, 2.5, true, null, x]}\nc: yes",
        "1: a\nx: b",
        "'1': a\n1: b",
        'a: "tab\\t, line\\n, \\u00e9 \\u200d"',
    ],
)
def test_what_is_plain_is_read_as_yaml_reads_it(text):
    assert read_yaml(text) == yaml.safe_load(text)


def test_shipped_suites_are_plain():
    from importlib import resources

    for name in available_suites():
        text = (resources.files("matu_flwr.tasks") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
        assert read_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 1", r"^found key 'a' again \(it is on line 1 too\) on line 3, column 1"),
        ("a: {b: 1, b: 1}", r"^found key 'b' again \(it is on line 1 too\) on line 1, column 11"),
        ("- {x: {y: 1}, x: 3}", "^found key 'x' again"),
        ("1: a\n1.0: b", "^found key 1.0 again"),  # one key of a dict
        ("!!set {a, b, a}", "^found the tag '!!set': write the plain value on line 1, column 1"),
        ("a: &x [1]\nb: *x", r"^found the alias \*x: write the value itself"),
        ("a: &x {b: *x}", r"^found the alias \*x"),
        ("a: {<<: {b: 1}, c: 2}", "^found the merge key <<: write the merged values here"),
        ("? [a, b]\n: 1", "^found a key that is not a plain value"),
        ("[" * 5000, f"^found more than {DEEPEST} levels of nesting"),
        ("a: [", "expected the node content"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("!!python/object:os.system {}", "^found the tag '!!python/object:os.system': write the plain value"),
        ("a: !!python/name:os.system", "^found the tag '!!python/name:os.system'"),
        ("a: !mine 3", "^found the tag '!mine'"),
        ("a: !!binary aGVsbG8=", "^found the tag '!!binary'"),
        ("a: !!omap [x: 1]", "^found the tag '!!omap'"),
        ("a: !!timestamp 2020-01-01", "^found the tag '!!timestamp'"),
        ("a: 010", "^found '010', which can be meant as a number in the octal or the decimal system, or as text"),
        ("a: -007", "^found '-007', which can be meant"),
        ("a: 1:30", "^found '1:30', which can be meant as minutes or hours and minutes, or as text: write a plain num"),
        ("a: 12:30:45", "^found '12:30:45', which can be meant as minutes"),
        ("a: 1e400", "^found '1e400', which is beyond any number on line 1, column 4"),
        ("a: " + "9" * 5000, "^found a number of 5000 digits"),
        ("a:\n\tb: 1", "line 2, column 1: b: 1 \\^: indent with spaces, not with tabs$"),
        ("a: !!int x", "invalid literal for int"),
        ("a: !!bool maybe", r"^found 'maybe', which is no !!bool .*: write the plain value on line 1, column 4"),
        ("a: !!int ''", "^found '', which is no !!int"),
        ("a: !!int '-'", "^found '-', which is no !!int"),
        ("a: !!map [b]", "^found !!map for what is no mapping: remove the tag on line 1, column 4"),
        ("!!map b", "^found !!map for what is no mapping"),
        ("a: !!float [1]", "^expected a scalar node, but found sequence"),
        ("a: !!int {b: 1}", "^expected a scalar node, but found mapping"),
        (r'a: "\e[31mred"', r"^found the character \\x1b in a text, .*: leave it out on line 1, column 4"),
        (r'"\x07": 1', r"^found the character \\x07 in a text"),
        (r'a: "\ud800"', r"^found the character \\ud800 in a text"),
        (r'[x, "\0"]', r"^found the character \\x00 in a text"),
        ("a: !!float x", "could not convert string to float"),
        ("x" * 2000 + ": 1", "mapping values are not allowed here"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_what_is_refused_names_the_reason_in_one_line(text, reason):
    with pytest.raises(YamlError, match=reason) as refusal:
        read_yaml(text)
    assert "\n" not in str(refusal.value)


def test_nesting_is_bounded_and_not_counted_twice():
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert read_yaml("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1))
    assert read_yaml(deepest) is not None
    with pytest.raises(YamlError, match="levels of nesting"):
        read_yaml("[" + deepest + "]")
    assert len(read_yaml("\n".join(f"- [{i}]" for i in range(5 * DEEPEST)))) == 5 * DEEPEST


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1e-4", 1e-4),
        ("1.0e3", 1000.0),
        ("-2E5", -2e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("0", 0),
        ("-0", 0),
        ("0.5", 0.5),
        ("0x1F", 31),
        ("0b11", 3),
        ("+1", 1),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("2020-01-01", "2020-01-01"),
        ("2020-13-45", "2020-13-45"),
        ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00Z"),
        ("1:30.5", "1:30.5"),
        ("0o10", "0o10"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1.2.3", "1.2.3"),
        ("1." + "2" * 40, float("1." + "2" * 40)),
        ("3" * 40 + "e" + "4" * 23, "3" * 40 + "e" + "4" * 23),
        ("3" * 61 + "e" + "44", "3" * 61 + "e" + "44"),
        ("'010'", "010"),
        ("=", "="),
        ("yes", True),
        ("No", False),
        ("off", False),
        ("~", None),
        ("y", "y"),
    ],
)
def test_plain_values_are_what_people_mean(text, value):
    found = read_yaml(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))
    assert math.isnan(read_yaml("a: .nan")["a"])


# --- files ---


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\xef\xbb\xbfa: 1\n", {"a": 1}),  # with a BOM, as some editors write it
        ("a: θ 🌱".encode(), {"a": "θ 🌱"}),
        (b"a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        (b"", None),
        (b"# only a comment\n", None),
        (b"%YAML 1.2\n---\na: 1\n...\n", {"a": 1}),
    ],
)
def test_files_as_they_come(tmp_path, content, value):
    (tmp_path / "a.yaml").write_bytes(content)
    assert read_yaml_file(tmp_path / "a.yaml") == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: ü\n".encode("latin-1"), "^found the byte 0xfc on line 1, which is not UTF-8: save the file as UTF-8$"),
        (b"a: 1\nb: \xff\n", "^found the byte 0xff on line 2"),
        ("a: 1".encode("utf-16"), "^found UTF-16 on line 1, which is not UTF-8"),
        (b"a: " + b"x" * LARGEST, rf"^found {LARGEST + 3} bytes, expected at most {LARGEST}: is this the right file"),
        (b"a: 1\x00", "special characters are not allowed"),
    ],
)
def test_files_that_are_refused(tmp_path, content, reason):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(YamlError, match=reason):
        read_yaml_file(tmp_path / "a.yaml")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(YamlError, match=r"^found a folder, a pipe or a device, expected a file"):
            read_yaml_file(path)
    with pytest.raises(FileNotFoundError):
        read_yaml_file(tmp_path / "none")


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 8)}]\n" for before, after in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "[" * 10**5, "{a: " * 10**5, "- " * 10**5, "? " * 10**5, "!!str " * 1000])
def test_a_small_file_makes_no_large_text_and_takes_no_time(text):
    with pytest.raises(YamlError) as refusal:
        read_yaml(text)
    assert len(str(refusal.value)) < 500
