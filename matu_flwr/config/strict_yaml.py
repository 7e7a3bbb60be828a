"""Reads YAML as people mean it, and refuses what can be meant in two ways, or costs too much.

Plain YAML silently takes the last of two equal keys, reads 010 as 8, 1:30 as 90, and 1e-3 as text. An alias (``*name``)
can repeat a large value, so that ten short lines fill the memory. Deep nesting overflows the parser's stack. Tags can
name types that no setting has. Suites and experiments need none of these.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from matu_flwr.texts import Brief, short

# Levels of nesting that are allowed. The deepest values of a suite, those of a canary, are on the fifth.
DEEPEST = 20
# Bytes of a file. The parser takes ten seconds for so many; the largest suite that is shipped has a hundredth.
LARGEST = 2**20
# What a value may be, also where a tag says so.
PLAIN = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)


# Escapes in quotes can write characters that steer a terminal, and halves of a character that no file can hold.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


class YamlError(Brief, ValueError):
    """A text that is not valid YAML, or that uses what is refused here. The message is one line and names the place."""


def read_yaml_file(path: Path) -> Any:
    """Read a YAML file in UTF-8 of at most `LARGEST` bytes.

    Raises
    ------
    OSError
        The file cannot be read.
    YamlError
        It is no file, is too large, is in another encoding, or is refused by `read_yaml`.
    """
    # Reading a pipe would wait for ever.
    if path.exists() and not path.is_file():
        raise YamlError("found a folder, a pipe or a device, expected a file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise YamlError(f"found {path.stat().st_size} bytes, expected at most {LARGEST}: is this the right file?")
    try:
        return read_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        found = "UTF-16" if content.startswith(marks) else f"the byte {content[error.start]:#04x}"
        line = content[: error.start].count(b"\n") + 1
        raise YamlError(f"found {found} on line {line}, which is not UTF-8: save the file as UTF-8") from None


def read_yaml(text: str) -> Any:
    """Parse a YAML text into dicts, lists, strings, numbers, booleans and None.

    Numbers are what people write: 1e-3 and 1_000 are numbers too. A date is text.

    Raises
    ------
    YamlError
        The text is not valid YAML, has a key twice in one mapping, has an alias, a merge key (``<<``), a tag of another
        type or a number that can be meant in two ways (010, 1:30), or is nested too deeply.
    """
    try:
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, ValueError) as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", line', "on line")
        hint = ": indent with spaces, not with tabs" if "'\\t' that cannot start any token" in told else ""
        raise YamlError(told + hint) from None


class _Strict(yaml.SafeLoader):
    """PyYAML's safe loader with the checks that the module's text lists."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
            raise ComposerError(
                None, None, f"found the alias *{event.anchor}: write the value itself here", event.start_mark
            )
        self._depth += 1
        if self._depth > DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
            raise ComposerError(None, None, f"found more than {DEEPEST} levels of nesting", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and node.tag not in PLAIN:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ComposerError(None, None, f"found the tag {short(tag)}: write the plain value", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
        # PyYAML lets through whatever Python raises for a value that does not fit its tag, such as `!!bool maybe`.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            kind = node.tag.replace("tag:yaml.org,2002:", "!!")
            told = f"found {short(node.value)}, which is no {kind} ({error}): write the plain value"
            raise ConstructorError(None, None, told, node.start_mark) from None
        if isinstance(found, str) and (wrong := _NO_TEXT.search(found)):
            told = f"found the character {ascii(wrong[0])[1:-1]} in a text, which no terminal or file name can show"
            raise ConstructorError(None, None, f"{told}: leave it out", node.start_mark)
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, "found !!map for what is no mapping: remove the tag", node.start_mark)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(
                    None, None, "found the merge key <<: write the merged values here instead", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, "found a key that is not a plain value", key_node.start_mark)
            if key in lines:
                raise ConstructorError(
                    None,
                    None,
                    f"found key {short(key)} again (it is on line {lines[key]} too)",
                    key_node.start_mark,
                )
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def _whole_number(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "").lstrip("+-")
        if ":" in text or (text.startswith("0") and text[1:].isdigit()):
            other = "minutes or hours and minutes" if ":" in text else "a number in the octal or the decimal system"
            raise ConstructorError(
                None,
                None,
                f"found {short(node.value)}, which can be meant as {other}, or as text: write a plain number, or put "
                "it in quotes",
                node.start_mark,
            )
        if len(text) > 100:
            raise ConstructorError(None, None, f"found a number of {len(text)} digits", node.start_mark)
        return int(self.construct_yaml_int(node))

    def _number(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if math.isinf(value) and "inf" not in text:
            raise ConstructorError(
                None, None, f"found {short(node.value)}, which is beyond any number", node.start_mark
            )
        return value


# PyYAML keeps for each first character the patterns of plain values. A date is text, and so are 1:30.5 and `=`; numbers
# with an exponent need no point and no sign.
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in patterns if tag in PLAIN and not tag.endswith(":float")]
    for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        # Short ones: a digest of 64 digits with one e among them is text.
        r"([-+]?(([0-9][0-9_]*)?\.[0-9][0-9_]*|[0-9][0-9_]*\.)([eE][-+]?[0-9]{1,3})?"
        r"|[-+]?[0-9][0-9_]{0,19}[eE][-+]?[0-9]{1,3}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)
_Strict.add_constructor("tag:yaml.org,2002:int", _Strict._whole_number)
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict._number)
