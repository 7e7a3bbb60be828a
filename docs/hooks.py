"""What mkdocs does beyond its own work: the table of settings, and a look at what the finished pages load.

Both read text alone: nothing of this package is imported, so that the site builds without torch.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "matu_flwr" / "config"
MARKER = "<!-- table of settings -->"
RANGES = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}
WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true, false"}
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon)[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|@import\s+["'(]*(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


class DocsError(RuntimeError):
    """The pages cannot be made, or would load something from elsewhere."""


# --- the table of settings, from the source of the sections ---


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where a page asks for it."""
    return markdown.replace(MARKER, settings_tables()) if MARKER in markdown else markdown


def settings_tables() -> str:
    """One table for the settings without a section, and one for each section."""
    classes = {node.name: node for file in sorted(CONFIG.glob("*.py")) for node in _classes(file)}
    if "Settings" not in classes:
        raise DocsError(f"no class Settings in {CONFIG}: the table of settings is made from its fields")
    choices = _named_choices()
    plain, sections = [], []
    for field in _fields(classes["Settings"]):
        kind = ast.unparse(field.annotation)
        name = _kebab(field.target.id)
        if kind in classes:
            title = (ast.get_docstring(classes[kind]) or "").partition("\n")[0]
            rows = [_row(f"{name}.", part, choices) for part in _fields(classes[kind])]
            sections.append(f"## `{name}`\n\n{title}\n\n{_table(rows)}")
        else:
            plain.append(_row("", field, choices))
    if not plain or not sections:
        raise DocsError(f"found {len(plain)} settings and {len(sections)} sections in {CONFIG}, expected many of both")
    return "\n\n".join([_table(plain), *sections])


def _classes(file: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [part for part in node.body if isinstance(part, ast.AnnAssign) and part.value is not None]


def _named_choices() -> dict[str, str]:
    """Names such as `Agreement` that stand for a Literal, anywhere in the package."""
    found = {}
    for file in sorted((ROOT / "matu_flwr").rglob("*.py")):
        for name, values in re.findall(r"^(\w+) = Literal\[(.*?)\]", file.read_text(encoding="utf-8"), re.M | re.S):
            found[name] = values
    return found


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _row(prefix: str, field: ast.AnnAssign, choices: dict[str, str]) -> tuple[str, str, str, str]:
    """Key, default, what is allowed, meaning."""
    call, kind = field.value, ast.unparse(field.annotation)
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "Field" and call.args):
        raise DocsError(f"setting {prefix}{field.target.id}: expected `= Field(default, description=…)`")
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    meaning = ast.literal_eval(words["description"]) if "description" in words else ""
    values = choices.get(kind) or (kind[len("Literal[") : -1] if kind.startswith("Literal[") else "")
    if values:
        allowed = ", ".join(f"`{value}`" for value in re.findall(r"""["']([^"']*)["']""", values) if value)
    else:
        bounds = [f"{sign}{ast.unparse(words[name])}" for name, sign in RANGES.items() if name in words]
        allowed = ", ".join([WORDS.get(kind, kind), *bounds])
    default = ast.literal_eval(call.args[0])
    shown = str(default).lower() if isinstance(default, bool) else str(default) or "–"
    return f"{prefix}{_kebab(field.target.id)}", shown, allowed, meaning


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for key, default, allowed, meaning in rows:
        lines.append(
            f"| `{key}` | {default} | {allowed} | {html.escape(meaning, quote=False).replace('|', '&#124;')} |"
        )
    return "\n".join(lines)


# --- what the pages load ---


def on_post_build(config: Any, **_: Any) -> None:
    """Refuse a site that needs a network to be read."""
    for file in sorted(Path(config["site_dir"]).rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            found = LOADS.search(file.read_text(encoding="utf-8"))
            if found:
                raise DocsError(f"{file} loads something from elsewhere: {found.group(0)[:200]}")
