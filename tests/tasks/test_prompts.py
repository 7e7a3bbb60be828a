import pytest
import yaml

from matu_flwr.tasks import TaskError, available_suites, load_suite
from matu_flwr.tasks.prompts import GENERAL, TEMPLATES, humanise, humanised, read_templates, written_class_names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("airplane", "airplane"),
        ("baseball_diamond", "baseball diamond"),
        ("AnnualCrop", "Annual Crop"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02099712_Labrador_retriever", "Labrador retriever"),
        ("church/indoor", "indoor church"),
        ("rolled-in_scale", "rolled-in scale"),
        ("7", "7"),
        ("20 km/h speed limit", "20 km/h speed limit"),
        ("F/A-18", "F/A-18"),
        ("Ram C/V Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012"),
        ("McLaren MP4-12C Coupe 2012", "McLaren MP4-12C Coupe 2012"),
        ("apse/indoor", "indoor apse"),
        ("Black_footed_Albatross", "Black footed Albatross"),
        ("2019", "2019"),
    ],
)
def test_humanise(name, words):
    assert humanise(name) == words


def test_names_that_would_fall_together_stay():
    assert humanised(["01.a", "02.a", "red_fox"]) == ("01.a", "02.a", "red fox")


def test_every_shipped_template_can_be_filled_in():
    for sentences in TEMPLATES.values():
        assert read_templates(list(sentences), "here") == sentences
        for sentence in sentences:
            assert "a cat" in sentence.format("a cat")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "digts",
            "here: key 'templates' is 'digts', which is not a shipped list: did you mean 'digits'\\? known: animals",
        ),
        ([], r"key 'templates' is \[\], expected the name of a shipped list or a list of sentences with {}"),
        (3, "key 'templates' is 3"),
        (["a photo"], "template 'a photo' cannot be filled in, expected a sentence with exactly one {}"),
        (["{} and {}"], "exactly one"),
        (["{} {name}"], "exactly one"),
        ([{"a": "b"}], "exactly one"),
    ],
)
def test_templates_that_do_not_do(value, text):
    with pytest.raises(TaskError, match=text):
        read_templates(value, "here")


def test_class_names_written_by_hand():
    names = written_class_names()
    assert len(names["GTSRB"]) == 43
    assert names["GTSRB"][14] == "stop"
    assert list(names["EuroSAT"]) == sorted(names["EuroSAT"])  # the order of the folders
    assert names["SVHN"][7] == "7"
    for words in names.values():
        listed = list(words.values()) if isinstance(words, dict) else words
        assert len(set(listed)) == len(listed)
        assert all(isinstance(word, str) and "_" not in word for word in listed)


def test_every_task_of_every_suite_has_templates_of_its_kind():
    for suite in available_suites():
        for spec in load_suite(suite).tasks.values():
            assert spec.templates != GENERAL, (suite, spec.name)
            assert spec.split, (suite, spec.name)


def test_templates_of_suite_and_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "templates": "food",
                "tasks": {
                    "a": {"loader": "folder"},
                    "b": {"loader": "folder", "templates": ["my {}"]},
                },
            }
        )
    )
    tasks = load_suite(str(path)).tasks
    assert tasks["a"].templates == TEMPLATES["food"]
    assert tasks["b"].templates == ("my {}",)
