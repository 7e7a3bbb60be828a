"""What the pages promise: links lead somewhere, names exist, lines are short, nothing is loaded from elsewhere."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from matu_flwr.config.settings import DEFAULTS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # a history may name what is gone
PROSE = [page for page in PAGES if page.name == "README.md" or page.is_relative_to(ROOT / "docs")]
WIDTH, CODE_WIDTH = 100, 120


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def script(path: Path) -> ModuleType:
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them, and those written by hand."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def too_long(text: str) -> list[tuple[int, str]]:
    """Lines of prose over the limit. Tables may be wide, and a word without a space cannot be broken."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif line.startswith("|"):
            continue
        limit = CODE_WIDTH if fenced or line.startswith("    ") else WIDTH
        words = re.sub(r"^([-*]|\d+\.) ", "", line.strip()).split()
        if len(line) > limit and len(words) > 1:
            found.append((number, line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: there is no {file}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}: {file.name} has no such heading; it has {sorted(anchors(file))}"


@pytest.mark.parametrize("page", TODAY, ids=names(TODAY))
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:matu_flwr|tests|benchmarks|docker|docs)/[\w./-]+\.(?:py|ya?ml|md|sh)\b", text):
        if path == "matu_flwr/strategies/fedmedian.py":  # the guide's example
            continue
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", TODAY, ids=names(TODAY))
def test_every_dotted_name_exists(page):
    for name in re.findall(r"\bmatu_flwr(?:\.\w+)+", page.read_text(encoding="utf-8")):
        parts = name.split(".")
        if parts[-1] == "py":
            continue
        module, rest = parts[0], parts[1:]
        found = importlib.import_module(module)
        while rest and hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{rest[0]}"):
            module = f"{module}.{rest.pop(0)}"
            found = importlib.import_module(module)
        for attribute in rest:
            assert hasattr(found, attribute), f"{name}: {found} has no {attribute}"
            found = getattr(found, attribute)


@pytest.mark.parametrize("page", PROSE, ids=names(PROSE))
def test_no_line_of_prose_is_too_long(page):
    assert too_long(page.read_text(encoding="utf-8")) == []


def test_what_counts_as_too_long():
    word = "x" * 101
    assert too_long(f"{word}\n- {word}\n| {'x ' * 99}|\n```\n{'x ' * 55}\n```\n    {'x ' * 55}\n") == []
    assert [number for number, _ in too_long(f"{'x ' * 51}\n    {'x ' * 61}\n- a {word}\n")] == [1, 2, 3]


def test_source_names_pages_that_exist():
    """Docstrings, comments and messages send their readers to pages."""
    files = [*(ROOT / "matu_flwr").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    files += [file for file in (ROOT / "docker").rglob("*") if file.is_file() and file.suffix != ".whl"]
    named = 0
    for file in files:
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file(), f"{file.relative_to(ROOT)} names {page}"
            named += 1
    assert named > 5


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"([\w./-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}


def test_the_figure_is_what_its_script_draws():
    drawn = script(ROOT / "docs" / "figures" / "one_round.py").picture()
    assert (ROOT / "docs" / "images" / "one-round.svg").read_text(encoding="utf-8") == drawn


def test_the_figure_packs_as_the_package_does():
    """The picture's own few lines of arithmetic give the numbers of `unify`."""
    import torch

    from matu_flwr import unify

    figure = script(ROOT / "docs" / "figures" / "one_round.py")
    learned, _ = figure.example()
    shared, masks, rescalers = figure.unify(list(learned.values()))
    vectors = {task: torch.tensor(vector, dtype=torch.float32) for task, vector in learned.items()}
    ours = unify(vectors, magnitude="mean", reconstruction="complete")
    torch.testing.assert_close(ours.vector, torch.tensor(shared))
    for task, mask, pair in zip(learned, masks, rescalers, strict=True):
        assert ours.masks[task].tolist() == mask
        assert (ours.rescalers[task], ours.opposites[task]) == pytest.approx(pair, rel=1e-5)
        rebuilt = torch.tensor(figure.rebuild(shared, mask, pair))
        torch.testing.assert_close(ours.reconstruct(task), rebuilt, rtol=1e-5, atol=1e-6)


def test_the_table_of_settings_has_every_setting_and_its_default():
    table = script(ROOT / "docs" / "hooks.py").settings_tables()
    shown = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in DEFAULTS.items()}
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*?) \|", table, re.MULTILINE)
    assert dict(rows) == {key: value or "–" for key, value in shown.items()}


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        "<script src=//cdn/x.js></script>",
        '<link rel="preconnect" href="https://fonts.gstatic.com">',
        '<img alt="a" src="http://elsewhere/badge.svg">',
        "<style>@import 'https://elsewhere/x.css';</style>",
        '<i style="background: url(https://elsewhere/x.png)">',
    ],
)
def test_a_site_that_loads_something_from_elsewhere_is_refused(tmp_path, page):
    hooks = script(ROOT / "docs" / "hooks.py")
    file = tmp_path / "index.html"
    file.write_text('<a href="https://flower.ai">Flower</a> <img src="images/one-round.svg">')
    hooks.on_post_build({"site_dir": str(tmp_path)})
    file.write_text(page)
    with pytest.raises(hooks.DocsError, match=r"index\.html loads something from elsewhere"):
        hooks.on_post_build({"site_dir": str(tmp_path)})


def test_the_python_guide_runs():
    """Its second example, and the one after it, in a process of their own as a reader would."""
    guide = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    code = "\n".join(block for block in blocks if "aggregate(" in block)
    assert code.count("aggregate(") == 3
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
