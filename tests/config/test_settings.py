"""Settings: each is typed and bounded, and errors name the key, the value and the range."""

import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from matu_flwr.backbones import backbone_arguments, create_backbone
from matu_flwr.config import removed
from matu_flwr.config.sections import MatuSettings
from matu_flwr.config.settings import DEFAULTS, SERVER_ONLY, Settings, SettingsError, check_keys
from matu_flwr.merging import MergeOptions
from matu_flwr.strategies.matu import merge_options
from tests.support.laws import examples


def fields_of(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by flat key, with its type, bounds and description."""
    found = {}
    for name, field in model.model_fields.items():
        key = prefix + name.replace("_", "-")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields_of(field.annotation, f"{key}.")
        else:
            found[key] = field
    return found


FIELDS = fields_of(Settings)
SECTIONS = list(dict.fromkeys(key.rpartition(".")[0] for key in DEFAULTS if "." in key))


def choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def bounds(field: FieldInfo) -> tuple[float, float, bool, bool]:
    """Least and largest value, and whether each is excluded."""
    low, high, above, below = -math.inf, math.inf, False, False
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(value):
                low = value
            case annotated_types.Gt(value):
                low, above = value, True
            case annotated_types.Le(value):
                high = value
            case annotated_types.Lt(value):
                high, below = value, True
    return low, high, above, below


def out_of_range() -> list[tuple[str, Any, str]]:
    """Values just outside the range of every field that has one, and what the error has to say of the range."""
    cases = []
    for key, field in FIELDS.items():
        low, high, above, below = bounds(field)
        if not math.isinf(low):
            if above:
                cases.append((key, low, f"greater than {low:g}"))
            cases.append((key, low - 1, f"greater than {'' if above else 'or equal to '}{low:g}"))
        if not math.isinf(high):
            if below:
                cases.append((key, high, f"less than {high}"))
            cases.append((key, high + 1, f"less than {'' if below else 'or equal to '}{high}"))
        if any(isinstance(bound, annotated_types.MinLen) for bound in field.metadata):
            cases.append((key, "", "at least 1 character"))
        if choices(field):
            cases.append((key, "nonsense", f"{choices(field)[-1]!r}"))
    return cases


# ---------------------------------------------------------------- defaults


def test_every_setting_is_a_plain_value_with_a_description():
    assert set(FIELDS) == set(DEFAULTS)
    for key, field in FIELDS.items():
        assert type(DEFAULTS[key]) in (bool, int, float, str)
        assert field.description, key
        assert re.fullmatch(r"([a-z]+(-[a-z]+)*\.)?[a-z]+(-[a-z]+)*", key)


def test_no_values_give_the_defaults():
    assert Settings.from_run_config({}) == Settings.from_run_config(DEFAULTS) == Settings.from_flat({}) == Settings()
    assert Settings().given() == set()
    assert Settings().changed() == {}


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("matu.kapa", "matu.kappa"),
        ("round", "rounds"),
        ("data_dir", "data-dir"),
        ("train.learning-rate", None),
        ("matu.relation_weight", "matu.relation-weight"),
        ("backbone.image_size", "backbone.image-size"),
        ("Rounds", "rounds"),
        ("kappa", "matu.kappa"),
    ],
)
@pytest.mark.parametrize("read", [Settings.from_flat, Settings.from_run_config])
def test_unknown_key_is_refused_with_the_nearest_match(read, key, near):
    hint = f"did you mean {near!r}" if near else "(did you mean|known keys)"
    with pytest.raises(SettingsError, match=f"^unknown setting {key!r}; {hint}"):
        read({"rounds": 3, key: 1})


def test_unknown_key_that_resembles_none_lists_the_known_ones():
    with pytest.raises(
        SettingsError, match=r"^unknown setting 'zzzzqqqq'; known keys: experiment, suite, .*ties.scale$"
    ):
        Settings.from_flat({"zzzzqqqq": 1})


@pytest.mark.parametrize("section", ["matu", "train", "partition", "backbone", "wire"])
def test_a_section_is_no_setting(section):
    with pytest.raises(SettingsError, match=f"unknown setting '{section}'"):
        Settings.from_flat({section: {}})


@pytest.mark.parametrize(
    ("key", "value", "today"),
    [
        ("evaluate", "ride", "clients test what they receive just before they train on it"),
        ("train.optimizer", "adamw", "the optimiser is AdamW"),
        ("backbone.last-blocks", 2, "backbone.trainable is full or lora"),
        ("partition.classes-per-holder", 2, "partition.split is dirichlet or iid"),
    ],
)
@pytest.mark.parametrize("read", [Settings.from_flat, Settings.from_run_config, check_keys])
def test_a_key_that_is_gone_is_refused_with_what_holds_today(read, key, value, today):
    text = f"setting '{key}' was removed after release 0.1.0: {today}; leave it out"
    with pytest.raises(SettingsError, match=f"^{re.escape(text)}$"):
        read({"rounds": 3, key: value})


def test_what_is_gone_is_no_setting_and_no_value():
    assert not removed.KEYS.keys() & DEFAULTS.keys()
    for key in removed.CHOICES.keys() - removed.KEYS.keys():
        assert not {*removed.CHOICES[key]} & {*choices(FIELDS[key])}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_value_out_of_range_names_key_value_and_range(section):
    cases = [case for case in out_of_range() if case[0].rpartition(".")[0] == section]
    assert cases
    for key, value, limit in cases:
        with pytest.raises(SettingsError) as refusal:
            Settings.from_flat({key: value})
        text = str(refusal.value)
        assert text.startswith(f"setting {key!r} = {value!r}: ")
        assert limit in text
        assert text.endswith(f"({FIELDS[key].description})")
        assert "\n" not in text


@pytest.mark.parametrize("value", [{"a": 1}, [1], None, "nonsense", b"\xff", object()])
def test_value_of_another_type_names_key_and_value(value):
    for key, default in DEFAULTS.items():
        if value == "nonsense" and isinstance(default, str) and not choices(FIELDS[key]):
            assert Settings.from_flat({key: value}).flat()[key] == value
            continue
        with pytest.raises(SettingsError, match=f"^setting {re.escape(repr(key))} = {re.escape(repr(value))}: "):
            Settings.from_flat({key: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_have_to_be_finite(value):
    for key in (key for key, default in DEFAULTS.items() if type(default) in (int, float)):
        with pytest.raises(SettingsError, match=f"^setting {re.escape(repr(key))} = {value}: .*finite number"):
            Settings.from_flat({key: value})


@pytest.mark.parametrize(("key", "kind"), [("rounds", "integer"), ("train.lr", "number")])
def test_true_is_no_number(key, kind):
    with pytest.raises(
        SettingsError, match=f"^setting '{key}' = True: input should be a valid {kind}, not true or false"
    ):
        Settings.from_flat({key: True})


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(
        SettingsError, match=r"^setting 'rounds' = 0: .*; setting 'train.schedule' = 'linear': input should be "
    ):
        Settings.from_flat({"rounds": 0, "train.schedule": "linear", "seed": 5})


def test_a_fraction_is_no_whole_number():
    with pytest.raises(SettingsError, match=r"^setting 'rounds' = 5\.5: input should be a valid integer"):
        Settings.from_flat({"rounds": 5.5})


def holds_one(field: FieldInfo) -> bool:
    _, high, _, below = bounds(field)
    return high > 1 or (high == 1 and not below)


def test_a_whole_number_may_stand_for_a_float():
    for key in (k for k, value in DEFAULTS.items() if type(value) is float and holds_one(FIELDS[k])):
        value = Settings.from_flat({key: 1}).flat()[key]
        assert value == 1.0
        assert type(value) is float


def test_least_and_most_tasks_have_to_agree():
    with pytest.raises(SettingsError, match=r"^partition\.min-tasks = 4 is larger than partition\.max-tasks = 3; "):
        Settings.from_run_config({"partition.min-tasks": 4})
    both = Settings.from_run_config({"partition.min-tasks": 4, "partition.max-tasks": 4})
    assert both.partition.min_tasks == both.partition.max_tasks == 4


def test_settings_are_frozen():
    settings_ = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings_.rounds = 3
    for section in ("partition", "backbone", "train", "wire", "matu"):
        part = getattr(settings_, section)
        name = next(iter(type(part).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))
    assert Settings() == settings_


# ---------------------------------------------------------------- what leaves


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Values that a setting may have."""
    field = FIELDS[key]
    if choices(field):
        return st.sampled_from(choices(field))
    low, high, above, below = bounds(field)
    if field.annotation is bool:
        return st.booleans()
    if field.annotation is int:
        return st.integers(int(low), min(high, 10**9) - 1 if below else int(min(high, 10**9)))
    if field.annotation is float:
        ends = {"min_value": None if math.isinf(low) else low, "max_value": None if math.isinf(high) else high}
        finite = st.floats(**ends, exclude_min=above, exclude_max=below, allow_nan=False, allow_infinity=False)
        return finite
    least = max((bound.min_length for bound in field.metadata if isinstance(bound, annotated_types.MinLen)), default=0)
    return st.text(min_size=least, max_size=8)


SOME_VALUES = st.fixed_dictionaries({}, optional={key: values_of(key) for key in DEFAULTS})


@examples(100)
@given(SOME_VALUES)
def test_flat_and_back_is_the_identity(values):
    found = Settings.from_flat(values)
    assert found.flat() == DEFAULTS | values
    assert list(found.flat()) == list(DEFAULTS)
    assert Settings.from_flat(found.flat()) == found


@examples(100)
@given(SOME_VALUES)
def test_clients_are_told_what_differs_and_no_path_of_the_server(values):
    server = Settings.from_flat(values)
    told = server.for_clients()
    assert not set(told) & set(SERVER_ONLY)
    assert all(told[key] != DEFAULTS[key] for key in told)
    client = Settings.from_flat(told)
    assert client.flat() == server.flat() | dict.fromkeys(SERVER_ONLY, "")
    assert client.for_clients() == told


def test_what_was_given_and_what_is_changed_are_known():
    found = Settings.from_flat({"rounds": 30, "matu.kappa": 0, "matu.rho": 0.4, "train.weight-decay": 0.1})
    assert found.given() == {"rounds", "matu.kappa", "matu.rho", "train.weight-decay"}
    assert list(found.changed().items()) == [("matu.kappa", 0), ("train.weight-decay", 0.1)]


def test_clients_are_told_nothing_of_the_defaults():
    assert Settings().for_clients() == {}
    told = Settings.from_flat({"out-dir": "runs/1", "experiment": "x.yaml", "rounds": 30, "matu.kappa": 0})
    assert told.for_clients() == {"matu.kappa": 0}


def test_clients_of_a_preset_do_as_the_server_does():
    server = Settings.from_run_config({"matu.preset": "paper"})
    assert Settings.from_flat(server.for_clients()) == server


@examples(50)
@given(st.fixed_dictionaries({key: values_of(key) for key in DEFAULTS if key.startswith("matu.")}))
def test_merge_options_are_the_switches_of_the_same_name(values):
    options = merge_options(Settings.from_flat(values).matu)
    names = [field.name for field in fields(MergeOptions)]
    assert set(names) <= set(MatuSettings.model_fields)
    for name in names:
        assert getattr(options, name) == values[f"matu.{name.replace('_', '-')}"]


def test_merge_options_offer_the_same_choices():
    # A choice that settings let through and the merge refuses would stop a run at its first round.
    for field in fields(MergeOptions):
        for choice in choices(FIELDS[f"matu.{field.name.replace('_', '-')}"]):
            MergeOptions(**{field.name: choice})


def test_backbone_arguments_carry_the_seed_of_the_run():
    found = Settings.from_flat(
        {"seed": 7, "backbone.name": "vit_tiny", "backbone.weights": "w.pt", "backbone.image-size": 64}
    )
    arguments = backbone_arguments(found)
    assert {"name": "vit_tiny", "weights": "w.pt", "image_size": 64, "seed": 7}.items() <= arguments.items()
    assert arguments.keys() <= inspect.signature(create_backbone.__wrapped__).parameters.keys()


def test_the_recipe_in_the_docs_is_a_valid_experiment(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(# clip\.yaml\n.*?)```", text, re.DOTALL)
    (tmp_path / "clip.yaml").write_text(recipe)
    found = Settings.from_run_config({"experiment": str(tmp_path / "clip.yaml")})
    assert (found.train.lr, found.train.weight_decay, found.train.batch_size) == (1e-5, 0.1, 128)
    assert (found.train.heads, found.train.schedule, found.train.clip_norm) == ("zero-shot", "cosine", 1.0)


def test_the_linearised_model_is_computed_in_float32() -> None:
    with pytest.raises(SettingsError, match=r"backbone\.linearised = true with train\.precision = bfloat16"):
        Settings.from_run_config({"backbone.linearised": True, "train.precision": "bfloat16"})


def test_error_feedback_is_about_updates() -> None:
    with pytest.raises(SettingsError, match=r"matu\.error-feedback = true with matu\.payload = 'vector'"):
        Settings.from_run_config({"matu.error-feedback": True, "matu.payload": "vector"})
