"""YAML of files that others have written: its aliases may not make much of little."""

from __future__ import annotations

from typing import Any

import yaml

_MOST = 1_000_000


class Loader(yaml.SafeLoader):
    """Refuses what is too large where each alias is written out, as all that is done with it later does."""

    def get_single_node(self) -> Any:
        """Return the file's one node."""
        node = super().get_single_node()
        if node is not None and _size(node, {}) > _MOST:
            raise yaml.YAMLError(f"its aliases make more than {_MOST} values of it")
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are in a node, each as often as it is named."""
    if id(node) not in known:
        known[id(node)] = _MOST + 1  # for what it names itself in
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
