from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.key import read_key

KEY = "0123456789abcdef0123456789abcdef"


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_without_file_and_variable_there_is_no_key() -> None:
    assert read_key(None, {}) == (None, None)


def test_line_ends_do_not_belong_to_the_key(tmp_path: Path) -> None:
    for content in (KEY, KEY + "\n", KEY + "\r\n", f" {KEY} "):
        assert read_key(key_file(tmp_path, content.encode()), {}) == (KEY.encode(), None)


def test_the_file_comes_before_the_variable(tmp_path: Path) -> None:
    environment = {"DLLAMA_GPU_KEY": "another key of some length"}
    assert read_key(None, environment)[0] == b"another key of some length"
    assert read_key(key_file(tmp_path, KEY.encode()), environment)[0] == KEY.encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"short", "of 5 bytes, but at least 16"),
        (b"x" * 5000, "more than 4096"),
    ],
)
def test_what_is_no_key_is_refused_with_a_way_to_make_one(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(DllamaError, match=problem) as caught:
        read_key(key_file(tmp_path, content), {})
    assert "make one with" in str(caught.value)


def test_an_empty_variable_is_refused_and_not_taken_for_no_key() -> None:
    with pytest.raises(DllamaError, match="DLLAMA_GPU_KEY is empty"):
        read_key(None, {"DLLAMA_GPU_KEY": ""})


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="does not exist"):
        read_key(tmp_path / "key", {})
    with pytest.raises(DllamaError, match=r"is a folder|cannot be read"):
        read_key(tmp_path, {})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_a_key_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    key, warning = read_key(key_file(tmp_path, KEY.encode(), 0o644), {})
    assert key == KEY.encode()
    assert warning is not None
    assert "chmod 600" in warning
