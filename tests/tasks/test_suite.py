import pytest

from matu_flwr.tasks import TaskError, TaskSpec, available_suites, load_suite


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_shipped_suites():
    assert available_suites() == [
        "offline", "paper-30", "paper-8", "real-12", "real-20", "real-4", "real-digits", "talls-14", "talls-20"
    ]  # fmt: skip
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
        ("[]", r"found \[\], expected a mapping with keys among max_train, "),
        ("taks: {}", r"^suite .*mine\.yaml: unknown key 'taks'; did you mean 'tasks'\?$"),
        ("3: x", r"^suite .*mine\.yaml: unknown key '3'; known keys: max_train, .*tasks$"),
        ("name: x", "key 'tasks' is missing, expected one or more tasks"),
        (
            f"{TASK}\nname: 3",
            r"key 'name' = 3: input should be a valid string \(put it in quotes\) \(name of the s",
        ),
        (
            f"{TASK}\nmax_test: -1",
            r"mine\.yaml: key 'max_test' = -1: input should be greater than or equal to 0 \(largest number of test",
        ),
        (f"{TASK}\nmax_test: true", "key 'max_test' = True: input should be a valid integer"),
        (f"{TASK}\nmax_test: '3'", "key 'max_test' = '3': input should be a valid integer"),
        (f"{TASK}\nmax_test: -1\nname: 3", "key 'max_test' = -1: .*; key 'name' = 3: "),
        ("tasks: {A b: {loader: npz}}", "'A b' cannot be a task's name, expected lower-case letters"),
        ("tasks: {3: {loader: npz}}", "3 cannot be a task's name, expected .*put a name that is a number in quotes"),
        ("tasks: {a: {loader: fodler}}", r"task 'a': unknown loader 'fodler': did you mean 'folder'\? known: folder,"),
        ("tasks: {a: {loader: [npz]}}", r"task 'a': key 'loader' = \['npz'\]: input should be a valid string \(how"),
        ("tasks: {a: {group: x}}", r"task 'a': key 'loader' = \{'group': 'x'\}: field required \(how the images"),
        ("tasks: {a: {laoder: npz}}", r"task 'a': .*unknown key 'laoder'; did you mean 'loader'\?"),
        ("tasks: {a: {loader: folder, group: 1}}", r"task 'a': key 'group' = 1: input should be a valid string \(put"),
        ("tasks: {a: {loader: folder, download: 1}}", "task 'a': key 'download' = 1: input should be a valid boolean"),
        (
            "tasks: {a: {loader: folder, options: {paht: x}}}",
            r"mine\.yaml: task 'a': loader 'folder' has no option 'paht': did you mean 'path'\? known: classes, path",
        ),
        ("tasks: {a: {loader: folder, options: [x]}}", r"key 'options' = \['x'\]: input should be a valid dictionary"),
        ("tasks: {a: {loader: npz}}", r"mine\.yaml: task 'a': loader 'npz' needs the option 'path'"),
        ("tasks: {a: {loader: npz, options: {path: 3}}}", "task 'a': option 'path' is 3, expected str"),
        (
            "tasks:\n  a: {loader: folder, options: {path: /x}}\n  a: {loader: folder, options: {path: /y}}",
            r"^suite .*mine\.yaml is not valid YAML: found key 'a' again \(it is on line 2 too\)",
        ),
        (f"max_train: 10\nmax_train: 10\n{TASK}", r"found key .max_train. again \(it is on line 1 too\)"),
        ("tasks: {a: &a {loader: npz}, b: *a}", r"found the alias \*a: write the value itself"),
    ],
)
def test_a_suite_that_is_not_as_the_schema_says(tmp_path, text, message):
    with pytest.raises(TaskError, match=message):
        load_suite(write(tmp_path, text))


def test_unknown_suites(tmp_path):
    with pytest.raises(TaskError, match=r"unknown suite 'real12': did you mean 'real-12'\? known: offline, paper-30, "):
        load_suite("real12")
    with pytest.raises(TaskError, match=r"none.yaml cannot be read: .*; give the path of a YAML file"):
        load_suite(str(tmp_path / "none.yaml"))


# --- including other suites -------------------------------------------------------------------------------------------


def test_the_suites_of_the_papers():
    sizes = {name: len(load_suite(name).tasks) for name in available_suites()}
    assert sizes == {
        "offline": 10, "paper-8": 8, "paper-30": 30, "talls-14": 14, "talls-20": 20,
        "real-4": 4, "real-12": 12, "real-20": 20, "real-digits": 10,
    }  # fmt: skip
    eight, fourteen, twenty = (load_suite(name).tasks for name in ("paper-8", "talls-14", "talls-20"))
    assert list(eight) == ["sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
    assert list(twenty.items())[:14] == list(fourteen.items())
    assert list(fourteen.items())[:8] == list(eight.items())
    loaders = [spec.loader for spec in load_suite("paper-30").tasks.values()]
    assert loaders.count("torchvision") == 14
    assert loaders.count("folder") == 16
    assert all(spec.max_train == spec.max_test == 0 for spec in twenty.values())


def test_one_data_set_two_suites():
    whole, capped = load_suite("paper-8").tasks["mnist"], load_suite("real-12").tasks["mnist"]
    assert capped.canary == whole.canary
    assert (whole.max_train, capped.max_train) == (0, 1000)


def test_include_all_or_some(tmp_path):
    write(tmp_path, "tasks: {a: {loader: folder}, b: {loader: folder, max_train: 5}}")
    (tmp_path / "outer.yaml").write_text(
        "include: [mine.yaml, {paper-8: [dtd]}]\nmax_test: 7\ntasks: {c: {loader: folder}}"
    )
    suite = load_suite(str(tmp_path / "outer.yaml"))
    assert list(suite.tasks) == ["a", "b", "dtd", "c"]
    assert [spec.max_train for spec in suite.tasks.values()] == [0, 5, 0, 0]
    assert {spec.max_test for spec in suite.tasks.values()} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "include: paper-8",
            r"key 'include' = 'paper-8': input should be a valid list \(names or paths of other suites,",
        ),
        ("include: [3]", r"key 'include\.0' = 3: input should be a valid dictionary \(names or paths of"),
        (
            "include: [{paper-8: dtd}]",
            r"key 'include\.0\.paper-8' = 'dtd': input should be a valid list \(names or",
        ),
        ("include: [paper-9]", r"unknown suite 'paper-9': did you mean 'paper-8'\?"),
        ("include: [{paper-8: [dtdd]}]", r"'include' names task 'dtdd' of paper-8: did you mean 'dtd'\? known: cars"),
        ("include: [paper-8]\ntasks: {dtd: {loader: folder}}", "task 'dtd' is also in an included suite"),
        ("include: [paper-8, real-12]", "task 'mnist' comes from two included suites and differs between them"),
        ("include: [mine.yaml]", "mine.yaml includes .*mine.yaml: remove one of these includes"),
        ("include: [none.yaml]", "none.yaml cannot be read"),
        ("include: []", "key 'tasks' is missing, expected one or more tasks"),
        ("tasks: {a: {loader: folder, split: 3}}", "task 'a': key 'split' = 3: input should be a valid string"),
        ("tasks: {a: {loader: folder, canary: 3}}", "task 'a': key 'canary' = 3: input should be a valid dictionary"),
        (
            "tasks: {a: {loader: folder, canary: {tain: 3}}}",
            r"unknown key 'canary\.tain'; did you mean 'canary\.train'\?",
        ),
        (
            "tasks: {a: {loader: folder, canary: {train: x}}}",
            r"key 'canary\.train' = 'x': input should be a valid integer",
        ),
        (
            "tasks: {a: {loader: folder, canary: {names: 12}}}",
            r"key 'canary\.names' = 12: input should be a valid string \(put it in quotes\)",
        ),
    ],
)
def test_includes_and_canaries_that_do_not_do(tmp_path, text, message):
    with pytest.raises(TaskError, match=message):
        load_suite(write(tmp_path, text))


def test_a_suite_that_includes_itself_by_another_path(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(TaskError, match=r"mine.yaml includes .*sub/../mine.yaml: remove one of these includes"):
        load_suite(write(tmp_path, "include: [sub/../mine.yaml]\ntasks: {a: {loader: sklearn-digits}}"))
    (tmp_path / "link.yaml").symlink_to("mine.yaml")
    with pytest.raises(TaskError, match="remove one of these includes"):
        load_suite(write(tmp_path, "include: [link.yaml]\ntasks: {a: {loader: sklearn-digits}}"))


def test_suites_that_include_each_other_often_are_read_once(tmp_path):
    # Read anew for each include, the first would be read 2^18 times.
    (tmp_path / "0.yaml").write_text("tasks: {a: {loader: sklearn-digits}}")
    for number in range(1, 19):
        (tmp_path / f"{number}.yaml").write_text(f"include: [{number - 1}.yaml, ./{number - 1}.yaml]")
    assert list(load_suite(str(tmp_path / "18.yaml")).tasks) == ["a"]


def test_too_many_suites_one_after_the_other(tmp_path):
    (tmp_path / "0.yaml").write_text("tasks: {a: {loader: sklearn-digits}}")
    for number in range(1, 400):
        (tmp_path / f"{number}.yaml").write_text(f"include: [{number - 1}.yaml]")
    with pytest.raises(
        TaskError, match=r"399.yaml: more than 20 suites include each other .*: put their tasks into few"
    ):
        load_suite(str(tmp_path / "399.yaml"))
