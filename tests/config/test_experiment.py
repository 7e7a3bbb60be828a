"""Where values come from: defaults < preset < experiment file < what was typed."""

import re

import pytest

from matu_flwr.config.closed import MOST
from matu_flwr.config.experiment import read_experiment
from matu_flwr.config.settings import DEFAULTS, PRESETS, Settings, SettingsError, given_values
from matu_flwr.merging import MergeOptions
from matu_flwr.strategies.matu import merge_options


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment file; gives the run config that names it."""

    def write(text: str | bytes) -> dict[str, str]:
        path = tmp_path / "experiment.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return {"experiment": str(path)}

    return write


def test_the_later_source_wins(experiment):
    key = "matu.epsilon"
    assert DEFAULTS[key] == 3.0  # the default
    assert Settings.from_run_config({"matu.preset": "paper"}).matu.epsilon == 0.5  # < preset
    from_file = experiment("matu: {preset: paper, epsilon: 0.6}")
    assert Settings.from_run_config(from_file).matu.epsilon == 0.6  # < experiment file
    assert Settings.from_run_config(from_file | {key: 0.7}).matu.epsilon == 0.7  # < run config
    # What is given elsewhere leaves the rest of the preset alone.
    assert Settings.from_run_config(from_file | {key: 0.7}).matu.signs == "masked"


def test_a_full_run_config_of_defaults_overrides_nothing(experiment):
    # Flower hands over every key of pyproject, most of them at their defaults.
    typed = experiment("rounds: 7\nmatu.kappa: 1\n") | {"seed": 5}
    found = Settings.from_run_config(given_values(DEFAULTS | typed, typed))
    assert (found.rounds, found.matu.kappa, found.seed) == (7, 1, 5)


def test_what_a_person_typed_wins_also_where_it_equals_a_default(experiment):
    typed = {"matu.preset": "paper", "matu.payload": "update"}
    assert DEFAULTS["matu.payload"] == "update"
    for found in (typed, given_values(DEFAULTS | typed, typed)):
        chosen = Settings.from_run_config(found)
        assert (chosen.matu.payload, chosen.matu.magnitude) == ("update", "max")
    over_a_file = experiment("rounds: 7\ntrain: {lr: 0.5, steps: 3}") | {"rounds": 30, "train.lr": 0.001}
    chosen = Settings.from_run_config(given_values(DEFAULTS | over_a_file, over_a_file))
    assert (chosen.rounds, chosen.train.lr, chosen.train.steps) == (30, 0.001, 3)


def test_a_default_that_somebody_changed_in_pyproject_counts_as_given():
    assert given_values(DEFAULTS | {"rounds": 50, "seed": 0}, ["seed"]) == {"rounds": 50, "seed": 0}


def test_an_unknown_key_of_a_run_config_is_refused():
    with pytest.raises(SettingsError, match=r"^unknown setting 'roundz'; did you mean 'rounds'[?]"):
        given_values(DEFAULTS | {"roundz": 3}, [])


def test_an_experiment_file_can_undo_a_preset(experiment):
    found = Settings.from_run_config(experiment("matu: {preset: paper, signs: complete}"))
    assert found.matu.signs == "complete" == DEFAULTS["matu.signs"]
    assert found.matu.payload == "vector"


def test_the_preset_of_the_run_config_wins_over_that_of_the_file(experiment):
    found = Settings.from_run_config(experiment("matu.preset: ''\nrounds: 4") | {"matu.preset": "paper"})
    assert found.matu.preset == "paper"
    assert found.matu.signs == "masked"
    assert found.rounds == 4


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_known_keys_and_valid_values(preset):
    found = Settings.from_run_config({"matu.preset": preset}).flat()
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]
    untouched = set(DEFAULTS) - set(PRESETS[preset]) - {"matu.preset"}
    assert {key: found[key] for key in untouched} == {key: DEFAULTS[key] for key in untouched}


def test_the_preset_paper_is_our_reading():
    found = Settings.from_run_config({"matu.preset": "paper"}).matu
    assert merge_options(found) == MergeOptions.paper()
    assert (found.payload, found.downlink) == ("vector", "client")


def test_an_unknown_preset_is_refused_with_the_choices():
    with pytest.raises(SettingsError, match=r"^setting 'matu\.preset' = 'papre': input should be '' or 'paper'"):
        Settings.from_run_config({"matu.preset": "papre"})


# ---------------------------------------------------------------- the experiment file


def test_sections_may_be_nested_or_dotted(experiment):
    nested = experiment("suite: offline\nmatu:\n  kappa: 5\n  rho: 0.2\ntrain: {lr: 0.5, heads: local}\n")
    found = Settings.from_run_config(nested).for_clients()
    dotted = experiment("matu.kappa: 5\nmatu.rho: 0.2\ntrain.lr: 0.5\ntrain.heads: local\n")
    assert Settings.from_run_config(dotted).for_clients() == found
    assert found == {"matu.kappa": 5, "matu.rho": 0.2, "train.lr": 0.5, "train.heads": "local"}


def test_a_number_that_yaml_reads_as_text_is_a_number(experiment):
    assert Settings.from_run_config(experiment("train: {lr: 1e-4}")).train.lr == 1e-4


@pytest.mark.parametrize(("text", "rounds"), [("1e3", 1000), ("1_000", 1000), ("0x10", 16), ("5.0", 5), ("+7", 7)])
def test_a_whole_number_may_be_written_in_many_ways(experiment, text, rounds):
    assert Settings.from_run_config(experiment(f"rounds: {text}")).rounds == rounds


@pytest.mark.parametrize("text", ["yes", "on", "True", "true"])
def test_yes_is_true(experiment, text):
    assert Settings.from_run_config(experiment(f"backbone: {{linearised: {text}}}")).backbone.linearised is True


def test_a_text_of_a_file_is_never_as_long_as_the_file(experiment):
    for text in ("rounds: [" + "1, " * 10**4 + "]", "".join(f"k{i}: 1\n" for i in range(10**4)), "x" * 10**5):
        with pytest.raises(SettingsError) as refusal:
            Settings.from_run_config(experiment(text))
        assert len(str(refusal.value)) <= 2000


def test_of_many_problems_the_first_are_told():
    with pytest.raises(SettingsError, match=rf"; and {len(DEFAULTS) - MOST} more problems$"):
        Settings.from_flat({key: {} for key in DEFAULTS})


def test_missing_experiment_file_names_the_path_and_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refusal:
        Settings.from_run_config({"experiment": "no-such.yaml"})
    text = str(refusal.value)
    assert text == (
        "experiment file no-such.yaml does not exist: check its name; a relative path begins where Flower runs, here "
        f"{tmp_path}"
    )


def test_a_folder_is_no_experiment_file(tmp_path):
    with pytest.raises(SettingsError, match="is not a file: give the path of a YAML file"):
        read_experiment(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: [", "{a: 1", "a: b: c", "\x00", "!!python/object:os.system {}", b"\xff\xfe\x00", b"\xe4: 1"]
)
def test_invalid_yaml_is_refused_with_the_path(experiment, text):
    config = experiment(text)
    with pytest.raises(SettingsError, match=rf"^experiment file {re.escape(config['experiment'])} is not valid YAML: "):
        Settings.from_run_config(config)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", "is empty"), ("- rounds: 3", "holds a list"), ("rounds", "holds a str"), ("3", "holds a int")],
)
def test_an_experiment_file_has_to_hold_a_mapping(experiment, text, kind):
    config = experiment(text)
    with pytest.raises(SettingsError, match=rf"experiment\.yaml {kind}, expected a mapping of settings$"):
        Settings.from_run_config(config)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("matu: {kapa: 1}", "matu.kapa"),
        ("matu.kapa: 1", "matu.kapa"),
        ("roundz: 1", "roundz"),
        ("3: 1", "3"),
        ("matu: {3: 1}", "matu.3"),
        ("matu: 5", "matu"),
        ("train:", "train"),
        ("suite: {name: x}", "suite.name"),
        ("matu: {train: {lr: 1}}", "matu.train"),
    ],
)
def test_unknown_key_in_a_file_names_file_and_key(experiment, text, key):
    config = experiment(text)
    path = re.escape(config["experiment"])
    with pytest.raises(SettingsError, match=rf"^experiment file {path}: unknown setting '{re.escape(key)}'; "):
        Settings.from_run_config(config)


@pytest.mark.parametrize(
    "text", ["rounds: 0", "rounds: [1]", "rounds: {}", "rounds: 2020-01-01", "matu: {kappa: {a: 1}}"]
)
def test_wrong_value_in_a_file_is_refused(experiment, text):
    if text == "rounds: {}":  # an empty section sets nothing
        assert Settings.from_run_config(experiment(text)).rounds == DEFAULTS["rounds"]
        return
    config = experiment(text)
    path = re.escape(config["experiment"])
    with pytest.raises(SettingsError, match=rf"^experiment file {path}: setting '(rounds|matu\.kappa)' = "):
        Settings.from_run_config(config)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: {lr: 0.5}\nrounds: 3\ntrain: {steps: 5}\n", "is not valid YAML: found key 'train' again"),
        ("train: {lr: 0.5, lr: 0.5}", r"is not valid YAML: found key .lr. again \(it is on line 1 too"),
        ("train.lr: 0.5\ntrain: {lr: 0.1}", ": setting 'train.lr' is given twice: remove one of them"),
        ("a: &a 3\nrounds: *a", r"is not valid YAML: found the alias \*a: write the value itself"),
        ("experiment: other.yaml", "names another experiment: put all settings into one file"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused(experiment, text, reason):
    config = experiment(text)
    path = re.escape(config["experiment"])
    with pytest.raises(SettingsError, match=rf"^experiment file {path}:? ?{reason}"):
        Settings.from_run_config(config)


def test_relative_paths_begin_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "e.yaml").write_text(
        "suite: mine.yml\ndata-dir: .\nstate-dir: ../state\nrounds: 3\n"
        "backbone: {weights: w.pt, heads-file: /abs/h.pt}\n"
    )
    found = read_experiment(tmp_path / "e.yaml")
    assert found == {
        "suite": str(tmp_path / "mine.yml"),
        "data-dir": str(tmp_path),
        "state-dir": str(tmp_path / ".." / "state"),
        "rounds": 3,
        "backbone.weights": str(tmp_path / "w.pt"),
        "backbone.heads-file": "/abs/h.pt",
    }


def test_words_that_are_no_paths_stay(tmp_path):
    (tmp_path / "e.yaml").write_text("suite: offline\nbackbone.weights: random\nstrategy: a/b\ndata-dir: ''\nseed: 7\n")
    found = read_experiment(tmp_path / "e.yaml")
    assert found == {"suite": "offline", "backbone.weights": "random", "strategy": "a/b", "data-dir": "", "seed": 7}


def test_a_home_that_nobody_has_is_named(tmp_path):
    (tmp_path / "e.yaml").write_text("data-dir: ~nobody-here/data\n")
    with pytest.raises(SettingsError, match=r"^data-dir = '~nobody-here/data': there is no such home folder"):
        read_experiment(tmp_path / "e.yaml")
