"""The files around the code: workflows, hooks, forms, the texts for people who want to help."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
BIN = Path(sys.executable).parent
TEXTS = [
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    ".github/pull_request_template.md",
]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def project():
    return tomllib.loads(read("pyproject.toml"))


def pins():
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


# --- GitHub --------------------------------------------------------------------------------------------------------


def jobs():
    found = []
    for file in sorted((GITHUB / "workflows").glob("*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        found += [pytest.param(job, id=f"{file.stem}:{name}") for name, job in content["jobs"].items()]
    return found


def commands(job):
    """The lines that a job's steps run."""
    return [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_the_checks_run_for_every_push_and_pull_request_and_may_write_nothing():
    content = yaml.safe_load(read(".github/workflows/checks.yml"))
    asked = content[True]  # YAML 1.1 reads the key `on` as true
    assert asked == {"push": {"branches": ["main"]}, "pull_request": None}
    assert content["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("job", jobs())
def test_a_job_ends_and_has_the_python_that_was_tested(job):
    assert job["runs-on"] == "ubuntu-latest"
    assert 0 < job["timeout-minutes"] <= 120
    (python,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    assert python["python-version"] == "3.11"
    assert python["cache"] == "pip"
    for name in python["cache-dependency-path"].split():
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("job", jobs())
def test_a_job_uses_github_s_own_actions_by_major_version(job):
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used[0].startswith("actions/checkout@")
    assert [name for name in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", name)] == []
    assert [step for step in job["steps"] if ("uses" in step) == ("run" in step)] == []


@pytest.mark.parametrize("job", jobs())
def test_what_a_job_calls_is_there(job):
    called = commands(job)
    made = [line.split()[1] for line in called if line.startswith("make ")]
    scripts = [line for line in called if line.startswith(".")]
    assert made or scripts
    assert set(made) <= targets()
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script


def test_a_job_runs_all_checks_and_another_keeps_what_it_builds():
    (checks,), (package,) = (
        [param.values[0] for param in jobs() if param.id == name] for name in ("checks:checks", "checks:package")
    )
    assert ".ci/run" in commands(checks)
    assert commands(package)[:2] == ["make docs", "make dist"]
    kept = [step["with"] for step in package["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert [(what["path"], what["if-no-files-found"]) for what in kept] == [("site", "error"), ("dist", "error")]


FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"})


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_an_issue_form_is_one_that_github_takes(file):
    """Only what GitHub knows: a form with anything else is not offered, and nobody is told."""
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked, "a form with text alone is refused"
    for part in form["body"]:
        assert set(part) <= {"type", "id", "attributes", "validations"}
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"].strip()
        if part["type"] in {"dropdown", "checkboxes"}:
            assert part["attributes"]["options"]
    names = [part["id"] for part in asked]
    assert len(set(names)) == len(names)
    labels = [part["attributes"]["label"] for part in asked]
    assert len(set(labels)) == len(labels)


def test_there_is_a_form_for_a_bug_a_question_and_a_wish_and_no_empty_page():
    assert {file.stem for file in FORMS} == {"bug", "question", "feature"}
    assert yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml"))["blank_issues_enabled"] is False


# --- .ci/run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real `.ci/run`, and a `make` that says what it was asked and fails at one target."""
    here = tmp_path / "checkout"
    (here / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", here / ".ci/run")
    make = tmp_path / "bin/make"
    make.parent.mkdir()
    make.write_text('#!/bin/sh\necho "$PWD $* ${MATU_DATA_DIR:-none}"\n[ "$1" != "$FAILS" ]\n')
    make.chmod(0o755)

    def run(**environment):
        path = f"{make.parent}{os.pathsep}{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MATU_")}
        return subprocess.run(
            [here / ".ci/run"],
            cwd=tmp_path,
            env={**clean, "PATH": path, "FAILS": "", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return here, run


def test_the_checks_end_with_the_tests(checkout):
    here, run = checkout
    done = run()
    assert done.returncode == 0, done.stderr
    steps = ("lint", "docs", "test", "test-all")
    assert done.stdout.splitlines() == [f"{here} {step} none" for step in steps]
    assert set(steps) <= targets()


def test_the_checks_try_laws_with_many_examples():
    for target, profile in (("test", []), ("test-all", ["ci"])):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
        called = [line for line in done.stdout.splitlines() if "-m pytest" in line]
        assert len(called) == 1
        assert re.findall(r"MATU_HYPOTHESIS_PROFILE=(\w+) ", called[0]) == profile


@pytest.mark.parametrize(("fails", "last"), [("lint", "lint"), ("docs", "docs"), ("test", "test")])
def test_the_checks_stop_at_the_first_that_fails(checkout, fails, last):
    done = checkout[1](FAILS=fails)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].split()[1] == last


def test_a_failure_of_the_last_check_fails_them_all(checkout):
    assert checkout[1](FAILS="test-all").returncode != 0


def test_the_checks_take_real_images_that_lie_beside_the_checkout(checkout):
    here, run = checkout
    data = here.parent / "shared/data"
    data.mkdir(parents=True)
    assert all(line.endswith(f" {data}") for line in run().stdout.splitlines())
    assert all(line.endswith(" /mine") for line in run(MATU_DATA_DIR="/mine").stdout.splitlines())


# --- hooks and versions --------------------------------------------------------------------------------------------


def hooks():
    content = yaml.safe_load(read(".pre-commit-config.yaml"))
    assert [repo["repo"] for repo in content["repos"]] == ["local"], "nothing is fetched but ruff itself"
    return {hook["id"]: hook for hook in content["repos"][0]["hooks"]}


def test_the_hooks_have_the_versions_of_the_constraints():
    found = hooks()
    assert set(found) == {"ruff-check", "ruff-format", "mypy"}
    for name in ("ruff-check", "ruff-format"):
        assert found[name]["additional_dependencies"] == [f"ruff=={pins()['ruff']}"]
    # mypy is the one that `make install` put there, under the same constraints
    assert found["mypy"]["entry"] == ".venv/bin/mypy"
    assert re.search(r"^VENV +:= \.venv$", read("Makefile"), re.MULTILINE)
    assert "--constraint constraints.txt" in read("Makefile")


def test_the_hooks_of_ruff_mend_a_file_and_say_so(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "matu_flwr/some.py"
    file.parent.mkdir()
    file.write_text('"""Say hello."""\nimport os\n\nHELLO = [ "hello" ]\n')
    outcomes = {}
    for name, hook in hooks().items():
        program, *arguments = shlex.split(hook["entry"])
        if program == "ruff":
            done = subprocess.run([BIN / program, *arguments, file], cwd=tmp_path, capture_output=True, check=False)
            outcomes[name] = done.returncode
    assert outcomes == {"ruff-check": 1, "ruff-format": 0}  # pre-commit itself sees that the second wrote
    assert file.read_text() == '"""Say hello."""\n\nHELLO = ["hello"]\n'


def test_types_are_checked_when_the_package_changes_and_only_then():
    pattern = hooks()["mypy"]["files"]
    assert re.search(pattern, "matu_flwr/merging/unify.py")
    assert re.search(pattern, "pyproject.toml")
    assert not re.search(pattern, "tests/merging/test_unify.py")
    assert not re.search(pattern, "docs/index.md")


def test_everything_that_is_asked_for_has_a_tested_version_in_its_range():
    about = project()["project"]
    lists = [about["dependencies"], *about["optional-dependencies"].values()]
    asked = [Requirement(line) for lines in lists for line in lines]
    pinned = {normal(name): version for name, version in pins().items()}
    outside = {
        str(one): pinned.get(normal(one.name))
        for one in asked
        if one.name != "matu-flwr"
        and (normal(one.name) not in pinned or not one.specifier.contains(pinned[normal(one.name)]))
    }
    assert outside == {}


def test_the_modules_and_files_that_pyproject_names_are_there():
    """A rule for a module that moved is silently no rule."""
    tools = project()["tool"]
    modules = {"matu_flwr"}  # and those with rules of their own
    for override in tools["mypy"]["overrides"]:
        modules.update(name for name in override["module"] if name.startswith("matu_flwr"))
    assert len(modules) > 1
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    globs = [*tools["ruff"]["lint"]["per-file-ignores"], *tools["flwr"]["app"]["fab-include"]]
    assert [glob for glob in globs if not any(ROOT.glob(glob))] == []


# --- coverage ------------------------------------------------------------------------------------------------------


def test_each_thing_that_coverage_leaves_out_is_still_there():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "matu_flwr").rglob("*.py")))
    for pattern in project()["tool"]["coverage"]["report"]["exclude_also"]:
        assert re.search(pattern, text, re.MULTILINE), f"{pattern}: nothing of this kind is left, so take it out"


def test_coverage_is_added_up_by_room():
    spec = importlib.util.spec_from_file_location("coverage_by_room", ROOT / ".ci/coverage_by_room.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def measured(lines, there, branches=0, branches_there=0):
        names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
        return {"summary": dict(zip(names, (lines, there, branches, branches_there), strict=True))}

    files = {
        "matu_flwr/merging/kernels/lanes.py": measured(3, 4),
        "server_app.py": measured(5, 6),
        "matu_flwr/merging/unify.py": measured(7, 8, 1, 2),
        "matu_flwr/merging/masks.py": measured(9, 10),
        "matu_flwr/seeds.py": measured(11, 12),
        "matu_flwr/tasks/loaders/hub.py": measured(0, 20, 0, 4),
    }
    rooms = script.by_room(files)
    assert rooms == {
        "(apps)": (5, 6),
        "(hall)": (11, 12),
        "merging": (17, 20),
        "merging/kernels": (3, 4),
        "tasks": (0, 24),
        "all": (36, 66),
    }
    assert list(rooms)[-1] == "all"


# --- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_no_line_is_too_long_to_read(name):
    long = [line for line in read(name).splitlines() if len(line) > 100 and not line.startswith("|")]
    assert long == []


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_links_to_is_there(name):
    where = (ROOT / name).parent
    links = re.findall(r"\]\((?!https://)([^)#]+)", read(name))
    assert [link for link in links if not (where / link).exists()] == []


@pytest.mark.parametrize("name", TEXTS)
def test_the_make_commands_of_a_text_are_there(name):
    assert set(re.findall(r"`make ([a-z-]+)", read(name))) <= targets()


def test_the_help_of_make_names_what_there_is():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"^make ([a-z-]+)", said, re.MULTILINE)
    assert len(set(named)) == len(named)
    assert {name for name in targets() - set(named) if not name.startswith("clean")} == {"help", "install"}
    assert set(named) <= targets()


def test_the_changelog_ends_its_open_part_with_the_version_that_is_out():
    headings = re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(project()['project']['version'])}\] - 20\d\d-\d\d-\d\d", headings[1])
    unreleased = read("CHANGELOG.md").split("\n## ")[1]
    assert re.search(r"^### (Added|Changed|Fixed|Removed)$", unreleased, re.MULTILINE)
