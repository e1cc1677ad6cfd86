"""Clusters described in a TOML file, for planning without machines.

```toml
[link]                # every node's cable to the switch, unless the node says otherwise
latency = "0.3ms"     # of a small message from one node to another
jitter = "0.05ms"     # how much later it comes on average (default 0)
bandwidth = "1Gb/s"

[[node]]              # the first is the root
name = "desktop"
memory = "24GB"       # what the model may use
speed = "50GB/s"      # weights read per second while decoding
prefill = "900GFLOPS" # arithmetic of many rows
op_time = "3us"       # fixed cost of one op of the graph (default 5us)
```
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.profile import Link, NodeProfile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST_FILE = 1 << 20
_NUMBER = re.compile(r"\s*(\d{1,15}(?:\.\d{0,15})?)\s*([^\s\d.]\S*)\s*", re.ASCII)
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_BYTES_PER_SECOND = {f"{unit}/s": factor for unit, factor in _BYTES.items()}
_BITS_PER_SECOND = {"kb/s": 125.0, "Mb/s": 125e3, "Gb/s": 125e6}
_FLOPS = {"MFLOPS": 1e6, "GFLOPS": 1e9, "TFLOPS": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}
_UNITS: dict[str, dict[str, float]] = {
    "memory": _BYTES,
    "speed": _BYTES_PER_SECOND,
    "prefill": _FLOPS,
    "op_time": _SECONDS,
    "latency": _SECONDS,
    "jitter": _SECONDS,
    "bandwidth": {**_BITS_PER_SECOND, **_BYTES_PER_SECOND},
}
_NODE_KEYS = ("name", *_UNITS)
_LINK_KEYS = ("latency", "jitter", "bandwidth")
_DEFAULT_OP_TIME = "5us"


@dataclass(frozen=True)
class DescribedCluster:
    """Nodes, the root first, each with its cable to one switch; a link between two is as bad as the worse cable."""

    nodes: tuple[NodeProfile, ...]
    cables: Mapping[str, Link]

    def link(self, first: str, second: str) -> Link:
        """The link between two nodes, given by name."""
        ends = (self.cables[first], self.cables[second])
        return Link.worst_of(ends)


def read_cluster_file(path: Path) -> DescribedCluster:
    """The cluster that a TOML file describes. Raises DllamaError naming the file and what is wrong in it."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DllamaError(f"{path} is larger than 1 MiB; a cluster file is a small TOML file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DllamaError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise DllamaError(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError:
        raise DllamaError(f"{path} is not UTF-8 text; a cluster file is a small TOML file") from None
    try:
        return parse_cluster(text)
    except DllamaError as error:
        raise DllamaError(f"{path}: {error}") from None


def parse_cluster(text: str) -> DescribedCluster:
    """The cluster that TOML text describes. Raises DllamaError saying what is wrong."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DllamaError(f"this is no TOML ({error})") from None
    _only(document, ("link", "node"), "the file")
    common = _only(document.get("link", {}), _LINK_KEYS, "[link]")
    described = document.get("node", [])
    if not isinstance(described, list) or not described:
        raise DllamaError("there is no node; describe each under [[node]], the root first")
    nodes: list[NodeProfile] = []
    cables: dict[str, Link] = {}
    for number, table in enumerate(described, 1):
        where = f"node {number}"
        table = _only(table, _NODE_KEYS, where)
        name = table.get("name")
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise DllamaError(f'{where} needs a name, like name = "pi1"')
        if any(node.name == name for node in nodes):
            raise DllamaError(f"two nodes are named {name}; give each its own name")
        nodes.append(_node(name, table))
        if len(described) > 1:
            cables[name] = _cable(name, {**common, **table})
    return DescribedCluster(tuple(nodes), cables)


def _node(name: str, table: Mapping[str, Any]) -> NodeProfile:
    where = f"node {name}"
    return NodeProfile(
        name=name,
        bytes_per_second=_quantity(table, "speed", where),
        flops_per_second=_quantity(table, "prefill", where),
        memory_bytes=int(_quantity(table, "memory", where)),
        op_seconds=_quantity({"op_time": _DEFAULT_OP_TIME, **table}, "op_time", where),
    )


def _cable(name: str, table: Mapping[str, Any]) -> Link:
    where = f"node {name} (or [link])"
    latency, bandwidth = (_quantity(table, key, where) for key in ("latency", "bandwidth"))
    return Link(latency, bandwidth, _quantity({"jitter": "0s", **table}, "jitter", where))


def _quantity(table: Mapping[str, Any], key: str, where: str) -> float:
    """A number with its unit, in bytes, seconds and operations."""
    units = _UNITS[key]
    example = f'{key} = "{_EXAMPLES[key]}"'
    if key not in table:
        raise DllamaError(f"{where} has no {key}; write {example}")
    value = table[key]
    found = f"{where} has {key} = {value!r:.60}"
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise DllamaError(f"{found}; wanted is a number from 0 up with its unit, like {example}")
    number, unit = match.groups()
    if unit not in units:
        raise DllamaError(f"{found}; its unit must be one of {', '.join(units)}")
    return float(number) * units[unit]


_EXAMPLES = {
    "memory": "8GB",
    "speed": "10GB/s",
    "prefill": "60GFLOPS",
    "op_time": _DEFAULT_OP_TIME,
    "latency": "0.3ms",
    "jitter": "0.05ms",
    "bandwidth": "1Gb/s",
}


def _only(table: Any, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """`table`, if it is one and has no other keys."""
    if not isinstance(table, Mapping):
        raise DllamaError(f"{where} must be a table, not {table!r}")
    for key in table:
        if key not in keys:
            raise DllamaError(f"{where} has an unknown key {key!r}; known are {', '.join(keys)}")
    return table
