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


def test_merging_imports_nothing_of_ours_but_vectors_and_no_flower():
    def forbidden(name):
        ours = under(name, "matu_flwr") and not under(name, "matu_flwr.merging", "matu_flwr.vectors")
        return ours or under(name, "flwr")

    assert offenders(files_of("merging"), forbidden) == {}


@pytest.mark.parametrize("part", ["local", "backbones", "tasks", "vectors", "seeds", "settings", "paths", "finetuned"])
def test_no_flower_at_the_client_s_core(part):
    flower_side = ("flwr", "matu_flwr.wire", "matu_flwr.strategies")
    assert offenders(files_of(part), lambda name: under(name, *flower_side)) == {}


def test_records_are_known_to_wire_and_strategies_only():
    def forbidden(name):
        return under(name, "flwr") and name.rpartition(".")[2] in {*RECORDS, "*"}

    elsewhere = [f for f in FILES if f not in files_of("wire") and f not in files_of("strategies")]
    assert offenders(elsewhere, forbidden) == {}
    apps = offenders([ROOT / "server_app.py", ROOT / "client_app.py"], forbidden)
    assert apps == {}


def test_of_the_strategies_only_the_base_knows_records():
    def forbidden(name):
        return under(name, "flwr") and name.rpartition(".")[2] in RECORDS

    assert set(offenders(files_of("strategies"), forbidden)) <= {"matu_flwr.federation.base"}


def test_run_knows_no_torch_nn():
    assert offenders(files_of("run"), lambda name: under(name, "torch.nn", "torch.optim")) == {}


def test_nobody_imports_the_apps():
    assert offenders(FILES, lambda name: under(name, "server_app", "client_app")) == {}
    for one, other in (("server_app", "client_app"), ("client_app", "server_app")):
        assert not any(under(name, other) for name in imports(ROOT / f"{one}.py"))


def test_slow_packages_are_imported_where_they_are_needed():
    found = offenders(FILES, lambda name: under(name, *SLOW), top_level=True)
    assert found == {}, "timm and torchvision take seconds: import them inside the function that needs them"


def test_importing_the_package_loads_neither_flower_nor_the_slow_packages():
    code = (
        "import sys, matu_flwr; "
        "print([m for m in ('flwr', 'ray', 'timm', 'torchvision', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
