"""Reads YAML, but refuses repeated keys, aliases and very deep nesting.

Plain YAML silently takes the last of two equal keys. An alias (``*name``) can repeat a large value, so that ten short
lines fill the memory. Deep nesting overflows the parser's stack. Suites and experiments need none of these.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from matu_flwr.texts import Brief

# Levels of nesting that are allowed. The deepest values of a suite, those of a canary, are on the fifth.
DEEPEST = 20


class YamlError(Brief, ValueError):
    """A text that is not valid YAML, or that uses what is refused here. The message is one line and names the place."""


def read_yaml(text: str) -> Any:
    """Parse a YAML text into dicts, lists, strings, numbers, booleans, dates and None.

    Raises
    ------
    YamlError
        The text is not valid YAML, has a key twice in one mapping, has an alias or a merge key (``<<``), or is nested
        too deeply.
    """
    try:
        return yaml.load(text, _Strict)
    # PyYAML lets a ValueError through for values such as the date 2024-13-01.
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(" ".join(str(error).split())) from None


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
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
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
                    None, None, f"found key {key!r} again; it is already on line {lines[key]}", key_node.start_mark
                )
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)
