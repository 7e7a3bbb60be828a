import pytest

from matu_flwr.tasks import TaskError, TaskSpec, available_suites, load_suite


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_shipped_suites():
    assert available_suites() == ["offline", "real-12", "real-20"]
    offline = load_suite("offline")
    assert len(offline.tasks) == 10
    groups = [spec.group for spec in offline.tasks.values()]
    assert all(groups.count(group) == 2 for group in groups)
    assert {spec.loader for spec in offline.tasks.values()} == {"sklearn-digits", "generated"}


def test_real_12_is_the_beginning_of_real_20():
    small, large = load_suite("real-12"), load_suite("real-20")
    assert list(small.tasks) == [
        "mnist", "kmnist", "usps", "cifar10", "gtsrb", "flowers5",
        "rsscn7", "neu_steel", "weather4", "corn_leaf", "blood_cells", "sign_digits",
    ]  # fmt: skip
    assert list(large.tasks.items())[:12] == list(small.tasks.items())
    assert len(large.tasks) == 20
    assert all((spec.max_train, spec.max_test) == (1000, 500) for spec in large.tasks.values())


def test_own_suite_in_file_order_with_caps(tmp_path):
    suite = load_suite(
        write(
            tmp_path,
            """
            max_train: 100
            tasks:
              zebra: {loader: folder, group: animals, options: {path: somewhere}, max_test: 7}
              "0ants": {loader: sklearn-digits, max_train: 0}
            """,
        )
    )
    assert suite.name == "mine"
    assert list(suite.tasks.values()) == [
        TaskSpec("zebra", "folder", {"path": "somewhere"}, "animals", 100, 7),
        TaskSpec("0ants", "sklearn-digits", {}, "", 0, 0),
    ]


TASK = "tasks: {a: {loader: sklearn-digits}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "is not valid YAML"),
        ("[]", r"found \[\], expected a mapping with keys among name, description"),
        ("taks: {}", "unknown key 'taks': did you mean 'tasks'\\? known: description, max_test"),
        ("name: x", "key 'tasks' is None, expected one or more tasks"),
        (f"{TASK}\nname: 3", "key 'name' is 3, expected text"),
        (f"{TASK}\nmax_test: -1", "key 'max_test' is -1, expected a number of images, 0 for all"),
        (f"{TASK}\nmax_test: true", "key 'max_test' is True, expected a number of images"),
        ("tasks: {A b: {loader: npz}}", "'A b' is no name for a task, expected lower-case letters"),
        ("tasks: {a: {loader: fodler}}", "task 'a': key 'loader' is 'fodler', did you mean 'folder'\\? known: folder,"),
        ("tasks: {a: {loader: [folder]}}", "task 'a': key 'loader' is \\['folder'\\]"),
        ("tasks: {a: {laoder: npz}}", "task 'a': unknown key 'laoder': did you mean 'loader'\\?"),
        ("tasks: {a: {loader: folder, group: 1}}", "task 'a': key 'group' is 1, expected text"),
        (
            "tasks: {a: {loader: folder, options: {paht: x}}}",
            "task 'a', options: unknown key 'paht': did you mean 'path'\\? known: classes, path, test, train",
        ),
        ("tasks: {a: {loader: npz}}", "task 'a': loader 'npz' needs the option 'path'"),
        ("tasks: {a: {loader: npz, options: {path: 3}}}", "task 'a': option 'path' is 3, expected str"),
    ],
)
def test_a_suite_that_is_not_as_the_schema_says(tmp_path, text, message):
    with pytest.raises(TaskError, match=message):
        load_suite(write(tmp_path, text))


def test_unknown_suites(tmp_path):
    with pytest.raises(TaskError, match=r"unknown suite 'real12': did you mean 'real-12'\? known: offline, real-12"):
        load_suite("real12")
    with pytest.raises(TaskError, match=r"none.yaml cannot be read: .*; give the path of a YAML file"):
        load_suite(str(tmp_path / "none.yaml"))
