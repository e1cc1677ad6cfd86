from __future__ import annotations

import struct
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import open_tokenizer, write_t_file
from tests.unit.tokenizer.small_vocabularies import byte_pair_metadata, byte_pair_t_file, train_byte_pair, write_gguf


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    vocabulary, specials = train_byte_pair("qwen2"), ["<|endoftext|>", "<|im_end|>"]
    write_gguf(tmp_path / "a.t", byte_pair_metadata(vocabulary, "qwen2", specials))
    write_t_file(tmp_path / "b.gguf", byte_pair_t_file(vocabulary, specials))
    first, second = open_tokenizer(tmp_path / "a.t"), open_tokenizer(tmp_path / "b.gguf")
    assert first.encode("the river", add_bos=False) == second.encode("the river", add_bos=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<I", 0x0A00ABCD) + bytes(40), "is a model, not a tokenizer; give its `.t` file to --tokenizer"),
        (struct.pack("<I", 0xABCD01) + bytes(40), "is a model, not a tokenizer"),
        (b'\n {"version": "1.0"}', "is no tokenizer.json of Hugging Face's tokenizers library: it has no model"),
        (b"PK\x03\x04", "holds no tokenizer (it begins with b'PK\\x03\\x04')"),
        (b"", "holds no tokenizer (it begins with b'')"),
        (b"GGUF", "the file ends at byte 4"),
        (struct.pack("<I", 0x567124), "ends too early: the header size takes 4 bytes at byte 4, 0 are left"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DllamaError) as caught:
        open_tokenizer(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_folders_and_missing_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match=r"is a folder with neither tokenizer\.json nor tokenizer\.model"):
        open_tokenizer(tmp_path)
    with pytest.raises(DllamaError, match="there is no tokenizer"):
        open_tokenizer(tmp_path / "none.t")


def test_an_unreadable_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DllamaError, match=r"cannot read the tokenizer .*: Permission denied"):
        open_tokenizer(tmp_path / "x.t")
