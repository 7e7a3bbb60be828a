"""Who may import whom: read from the source with ast, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "matu_flwr"
FILES = sorted(PACKAGE.rglob("*.py"))
RECORDS = {"Array", "ArrayRecord", "ConfigRecord", "MetricRecord", "RecordDict"}
SLOW = {"torchvision", "timm"}

# The plan of the house: which rooms a room may look into. The hall holds the small modules that every room may use.
HALL = {"texts", "choices", "names", "vectors", "seeds", "logs", "files", "digests", "events", "_torchvision"}
MAY_IMPORT = {
    "merging": {"choices", "texts", "vectors"},
    "config": {"choices", "texts"},
    "backbones": {"config", *HALL},
    "tasks": {"config", *HALL},
    "wire": {"backbones", "config", "merging", *HALL},
    "client": {"backbones", "config", "merging", "tasks", *HALL},
    "federation": {"backbones", "client", "config", "merging", "wire", *HALL},
    "strategies": {"backbones", "client", "config", "federation", "merging", "tasks", *HALL},
    "models": {"backbones", "client", "config", "merging", "tasks", *HALL},
    "run": {"backbones", "client", "config", "federation", "merging", "models", "strategies", "tasks", "wire", *HALL},
    "launch": {"config", "run", *HALL},
    "compare": {"config", "launch", "run", "strategies", *HALL},
    "deployment": {"config", "launch", "run", *HALL},
    "pretraining": {"backbones", "client", "config", "tasks", *HALL},
}
NO_FLOWER = ("client", "backbones", "tasks", "config", "models", "merging", "vectors", "seeds")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, *, top_level=False):
    """Dotted names that a file imports; `from a import b` counts as a.b. Imports for type checking are left out."""
    found = set()

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for other in child.orelse:
                    walk(other, inside)
                continue
            if not (inside and top_level):
                if isinstance(child, ast.Import):
                    found.update(alias.name for alias in child.names)
                if isinstance(child, ast.ImportFrom):
                    assert child.level == 0, f"{path}: relative import"
                    found.update(f"{child.module}.{alias.name}" for alias in child.names)
            walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def under(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def files_of(part):
    folder = PACKAGE / part
    found = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    assert found, part
    return found


def offenders(files, forbidden, **options):
    return {
        module_of(path): wrong
        for path in files
        if (wrong := sorted(name for name in imports(path, **options) if forbidden(name)))
    }


def circles(arrows):
    """Groups of nodes that reach each other: Tarjan's strongly connected components of more than one node."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in arrows.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def module_arrows():
    """What each module of the package imports of the package, imports inside functions too."""
    known = {module_of(path): path for path in FILES}

    def target(name):
        return name if name in known else name.rpartition(".")[0]

    return {
        module: {target(name) for name in imports(path) if target(name) in known} - {module}
        for module, path in known.items()
    }


def room_of(module):
    """The folder below the package, or the name of a module in the hall; "" for the package itself."""
    return [*module.split("."), ""][1]


def test_the_reader_sees_every_form_of_import(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import os.path\nfrom torch import nn\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import timm\n"
        "try:\n    import torchvision\nexcept ImportError:\n    pass\n"
        "def f():\n    import flwr.app\n"
    )
    assert imports(file) == {"os.path", "torch.nn", "typing.TYPE_CHECKING", "torchvision", "flwr.app"}
    assert imports(file, top_level=True) == {"os.path", "torch.nn", "typing.TYPE_CHECKING", "torchvision"}


def test_the_search_for_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_no_circle_of_modules():
    assert circles(module_arrows()) == []


def test_no_circle_of_rooms():
    rooms = {}
    for module, others in module_arrows().items():
        rooms.setdefault(room_of(module), set()).update({room_of(other) for other in others} - {room_of(module), ""})
    assert circles(rooms) == []


def test_every_room_looks_only_where_the_plan_allows():
    wrong = [
        f"{module} -> {other}"
        for module, others in module_arrows().items()
        for other in others
        if room_of(module) in MAY_IMPORT
        and room_of(other) not in {room_of(module), ""}  # the package itself: its version
        and room_of(other) not in MAY_IMPORT[room_of(module)]
    ]
    assert wrong == []


def test_the_plan_names_every_room():
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert there == {*MAY_IMPORT, "cli"}
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert loose == HALL


def test_the_hall_imports_no_room():
    def looks_elsewhere(name):
        return under(name, "matu_flwr") and not under(name, "matu_flwr.texts")  # every exception is a `Brief` one

    wrong = offenders([PACKAGE / f"{name}.py" for name in HALL], looks_elsewhere)
    assert wrong == {}


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("run --suite offlin", "did you mean 'offline'"),
        ("run --strategy mattu", "did you mean 'matu'"),
        ("run -c trian.lr=1", "did you mean 'train.lr'"),
        ("run --suite real-4 -c data-dir=/nowhere", "data-dir = '/nowhere' is not a folder"),
        ("compare --strategies matu,mattu", "did you mean 'matu'"),
        ("compare --strategies ,", "names no method"),
        ("status", "name the output folder of a run"),
    ],
)
def test_a_typo_is_told_without_waiting_for_heavy_packages(command, text):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom matu_flwr.cli import app\n"
        "print(CliRunner().invoke(app, sys.argv[1:]).output)\n"
        "print([m for m in ('torch', 'numba', 'flwr', 'ray', 'timm', 'torchvision', 'sklearn') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", code, *command.split()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert text in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_merging_knows_its_kernels_through_one_door():
    def forbidden(name):
        door = ("matu_flwr.merging.kernels.for_device", "matu_flwr.merging.kernels.Merge")  # and the type that it gives
        return under(name, "matu_flwr.merging.kernels") and name not in door

    readable = [path for path in files_of("merging") if "kernels" not in path.parts]
    assert offenders(readable, forbidden) == {}


@pytest.mark.parametrize("part", NO_FLOWER)
def test_no_flower_in_the_core(part):
    flower_side = ("flwr", "matu_flwr.wire", "matu_flwr.federation", "matu_flwr.strategies")
    assert offenders(files_of(part), lambda name: under(name, *flower_side)) == {}


def test_records_are_known_to_wire_and_federation_only():
    def forbidden(name):
        return under(name, "flwr") and name.rpartition(".")[2] in {*RECORDS, "*"}

    known = [*files_of("wire"), *(PACKAGE / "federation" / name for name in ("base.py", "stream_grid.py"))]
    elsewhere = [f for f in FILES if f not in known]
    assert offenders(elsewhere, forbidden) == {}
    apps = offenders([ROOT / "server_app.py", ROOT / "client_app.py"], forbidden)
    assert apps == {}


def test_run_knows_no_torch_nn():
    assert offenders(files_of("run"), lambda name: under(name, "torch.nn", "torch.optim")) == {}


def test_nobody_imports_the_apps_or_the_commands():
    inside = [path for path in FILES if "cli" not in path.relative_to(PACKAGE).parts]
    assert offenders(FILES, lambda name: under(name, "server_app", "client_app")) == {}
    assert offenders(inside, lambda name: under(name, "matu_flwr.cli")) == {}
    for one, other in (("server_app", "client_app"), ("client_app", "server_app")):
        assert not any(under(name, other) for name in imports(ROOT / f"{one}.py"))


def test_slow_packages_are_imported_where_they_are_needed():
    found = offenders(FILES, lambda name: under(name, *SLOW), top_level=True)
    assert found == {}, "timm and torchvision take seconds: import them inside the function that needs them"


def test_importing_the_package_loads_no_heavy_package():
    code = (
        "import sys, matu_flwr; "
        "print([m for m in ('torch', 'numba', 'flwr', 'ray', 'timm', 'torchvision', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
