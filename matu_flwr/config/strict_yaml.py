"""Reads YAML as a person means it: a key that stands twice, an alias and bottomless nesting are refused.

Plain YAML takes the last of two equal keys in silence. An alias (``*name``) may stand for a value of any size, so that
ten short lines fill the memory, and deep nesting ends the reader's own stack. Nobody needs either in a suite or an
experiment.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

DEEPEST = 20  # levels of nesting; a suite's canary is on the fifth


class YamlError(ValueError):
    """A text that is no YAML, or more than is allowed here; one line, with the place."""


def read_yaml(text: str) -> Any:
    """What a YAML text holds, of plain types.

    Raises
    ------
    YamlError
        Not valid, a key twice in one mapping, an alias or a merge key, nested too deeply.
    """
    try:
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date in a thirteenth month
        raise YamlError(" ".join(str(error).split())) from None


class _Strict(yaml.SafeLoader):
    """PyYAML's safe loader, and what the module says."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise ComposerError(
                None, None, f"found the alias *{event.anchor}: write the value itself", event.start_mark
            )
        self._depth += 1
        if self._depth > DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"found more than {DEEPEST} levels of nesting", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "found the key <<: write its values out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, "found a key that is no plain value", key_node.start_mark)
            if key in lines:
                raise ConstructorError(
                    None, None, f"found key {key!r} a second time, after line {lines[key]}", key_node.start_mark
                )
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)
