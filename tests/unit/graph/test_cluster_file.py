"""Described clusters are read with their units; every defect is a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.cluster_file import parse_cluster, read_cluster_file
from dllama_gpu.graph.profile import Link, NodeProfile

EXAMPLE = Path(__file__).parents[3] / "examples" / "cluster.toml"
LINK = '[link]\nlatency = "0.3ms"\nbandwidth = "1Gb/s"\n'
ROOT = '[[node]]\nname = "root"\nmemory = "8GB"\nspeed = "10GB/s"\nprefill = "60GFLOPS"\n'
OTHER = ROOT.replace("root", "pi")


def test_the_example_is_a_desktop_and_four_boards() -> None:
    cluster = read_cluster_file(EXAMPLE)
    assert [node.name for node in cluster.nodes] == ["desktop", "pi1", "pi2", "pi3", "pi4"]
    assert cluster.link("pi1", "desktop") == Link(3e-4, 940e6 / 8, 0.05 * 1e-3)


def test_a_node_alone_needs_no_link_and_has_a_usual_op_time() -> None:
    (node,) = parse_cluster(ROOT).nodes
    assert replace(node, op_seconds=0) == NodeProfile("root", 10e9, 60e9, 8 * 10**9, 0)
    assert node.op_seconds == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("8GB", 8e9), ("1.5 GiB", 1.5 * 2**30), ("512MiB", 2**29), (" 900 MB ", 9e8), ("0B", 0), ("2TB", 2e12)],
)
def test_memory_has_decimal_and_binary_units(written: str, meant: float) -> None:
    assert parse_cluster(ROOT.replace("8GB", written)).nodes[0].memory_bytes == int(meant)


def test_a_link_is_as_bad_as_the_worse_of_its_two_cables() -> None:
    slow = OTHER + 'latency = "2ms"\nbandwidth = "12.5MB/s"\n'
    third = OTHER.replace("pi", "third") + 'latency = "90us"\njitter = "1ms"\n'
    cluster = parse_cluster(LINK + ROOT + slow + third)
    assert cluster.link("root", "pi") == cluster.link("pi", "root") == Link(2e-3, 12.5e6)
    assert cluster.link("root", "third") == Link(3e-4, 125e6, 1e-3)
    assert cluster.link("pi", "third") == Link(2e-3, 12.5e6, 1e-3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"there is no node; describe each under \[\[node\]\]"),
        ("[[node]", "this is no TOML"),
        ("node = " + "[" * 100_000, "this is no TOML"),
        ("a = " + "9" * 5000, "this is no TOML"),
        ("node = 3", "there is no node"),
        ("node = [3]", "node 1 must be a table, not 3"),
        ("link = 3\n" + ROOT, r"\[link\] must be a table, not 3"),
        ("colour = 1\n" + ROOT, "the file has an unknown key 'colour'; known are link, node"),
        (
            '[link]\nspeed = "1Gb/s"\n' + ROOT,
            r"\[link\] has an unknown key 'speed'; known are latency, jitter, bandwidth",
        ),
        (ROOT + 'ram = "8GB"', "node 1 has an unknown key 'ram'; known are name, memory"),
        (ROOT.replace('name = "root"', ""), "node 1 needs a name"),
        (ROOT.replace('"root"', "7"), "node 1 needs a name"),
        (ROOT.replace('"root"', '" "'), "node 1 needs a name"),
        (ROOT.replace('"root"', '"a\\u001bb"'), "node 1 needs a name"),
        (LINK + ROOT + ROOT, "two nodes are named root"),
        (ROOT.replace('memory = "8GB"', ""), 'node root has no memory; write memory = "8GB"'),
        (ROOT.replace('"8GB"', "8"), "node root has memory = 8; wanted is a number from 0 up with its unit"),
        (ROOT.replace("8GB", "8"), "node root has memory = '8'; wanted is a number"),
        (ROOT.replace("8GB", "-8GB"), "node root has memory = '-8GB'; wanted is a number from 0 up"),
        (ROOT.replace("8GB", "9" * 400 + "GB"), "node root has memory = '9{59}; wanted is a number"),
        (ROOT.replace("8GB", "8gb"), "memory = '8gb'; its unit must be one of B, kB, MB, GB"),
        (ROOT.replace("10GB/s", "10GB"), "speed = '10GB'; its unit must be one of B/s"),
        (ROOT.replace("10GB/s", "0GB/s"), "bytes_per_second of node root must be from 1 to 1e18, not 0"),
        (ROOT.replace("60GFLOPS", "fast"), "prefill = 'fast'; wanted is a number"),
        (ROOT + 'op_time = "2h"', "op_time = '2h'; its unit must be one of s, ms, us"),
        (ROOT + OTHER, r'node root \(or \[link\]\) has no latency; write latency = "0.3ms"'),
        (LINK.replace("1Gb/s", "1Gbit") + ROOT + OTHER, "bandwidth = '1Gbit'; its unit must be one of kb/s, Mb/s"),
        (LINK.replace("0.3ms", "2000000s") + ROOT + OTHER, "the latency of a link must be 0 to 3600 s"),
    ],
)
def test_a_defect_is_named_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(DllamaError, match=sentence):
        parse_cluster(text)


@given(text=st.text() | st.text(alphabet='[]node={}"link.8GB/sm\n ', max_size=80))
def test_no_text_brings_anything_but_a_cluster_or_a_sentence(text: str) -> None:
    try:
        assert parse_cluster(text).nodes
    except DllamaError as error:
        assert str(error)  # noqa: PT017 any sentence will do


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    binary, huge, wrong = tmp_path / "binary.toml", tmp_path / "huge.toml", tmp_path / "wrong.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    huge.write_bytes(b"#" * ((1 << 20) + 1))
    wrong.write_text("[[node]]\n", encoding="utf-8")
    for path, sentence in (
        (tmp_path / "none.toml", "none.toml does not exist"),
        (tmp_path, "cannot be read"),
        (binary, "binary.toml is not UTF-8 text"),
        (huge, "huge.toml is larger than 1 MiB"),
        (wrong, "wrong.toml: node 1 needs a name"),
    ):
        with pytest.raises(DllamaError, match=sentence):
            read_cluster_file(path)
