import pytest
import yaml

from matu_flwr.config.strict_yaml import DEEPEST, YamlError, read_yaml
from matu_flwr.tasks import available_suites


@pytest.mark.parametrize(
    "text", ["", "3", "- a\n- b", "a: {b: [1, 2.5, true, null, x]}\nc: 2020-01-01", "1: a\nx: b", "'1': a\n1: b"]
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
        ("a: 1\nb: 2\na: 1", r"^found key 'a' again; it is already on line 1 in .*line 3, column 1"),
        ("a: {b: 1, b: 1}", "^found key 'b' again; it is already on line 1 in .*line 1, column 11"),
        ("- {x: {y: 1}, x: 3}", "^found key 'x' again"),
        ("1: a\n1.0: b", "^found key 1.0 again"),  # one key of a dict
        ("!!set {a, b, a}", "^found key 'a' again"),
        ("a: &x [1]\nb: *x", r"^found the alias \*x: write the value itself"),
        ("a: &x {b: *x}", r"^found the alias \*x"),
        ("a: {<<: {b: 1}, c: 2}", "^found the merge key <<: write the merged values here"),
        ("? [a, b]\n: 1", "^found a key that is not a plain value"),
        ("[" * 5000, f"^found more than {DEEPEST} levels of nesting"),
        ("a: [", "expected the node content"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
        ("a: 2020-13-45", "month must be in 1..12"),
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
