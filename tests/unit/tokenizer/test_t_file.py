"""The `.t` format: exact bytes, round trips, and a sentence for every defect."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.t_file import TokenizerFile, format_t_file, parse_t_file, read_t_file, write_t_file

FILE = TokenizerFile(
    tokens=(b"a", b"bc", b"\xff", b"<s>", b"</s>"),
    scores=(0.0, -1.0, -2.5, -3.0, -4.0),
    bos_id=3,
    eos_ids=(4, 3),
    add_bos=True,
    chat_template="{{ 'é' }}",
)
TOKENS = b"".join(
    struct.pack("<fI", score, len(token)) + token for token, score in zip(FILE.tokens, FILE.scores, strict=True)
)


def header(*pairs: tuple[int, int], magic: int = 0x567124, size: int | None = None) -> bytes:
    data = b"".join(struct.pack("<ii", *pair) for pair in pairs)
    return struct.pack("<II", magic, 8 + len(data) if size is None else size) + data


def refusal(data: bytes) -> str:
    with pytest.raises(DllamaError) as caught:
        parse_t_file(data, "x.t")
    return str(caught.value)


def test_the_written_bytes_are_those_of_the_originals_writer() -> None:
    # bos_id, version, vocab_size, max_token_length, chat_template, n_eos_tokens, add_bos
    expected = header((3, 3), (0, 1), (1, 5), (2, 4), (7, 10), (9, 2), (10, 1))
    expected += "{{ 'é' }}".encode() + struct.pack("<ii", 4, 3) + TOKENS
    assert format_t_file(FILE) == expected
    assert parse_t_file(expected, "x.t") == FILE


def test_without_a_chat_template_its_key_is_left_out() -> None:
    data = format_t_file(TokenizerFile((b"a",), (0.0,), bos_id=0, eos_ids=(), add_bos=False))
    assert data == header((3, 0), (0, 1), (1, 1), (2, 1), (9, 0), (10, 0)) + struct.pack("<fI", 0.0, 1) + b"a"
    assert parse_t_file(data, "x.t").chat_template is None


float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    vocabulary=st.lists(st.tuples(st.binary(min_size=1, max_size=20), float32s), min_size=1, max_size=20),
    template=st.none() | st.text(min_size=1, max_size=30),
    add_bos=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read(
    vocabulary: list[tuple[bytes, float]], template: str | None, add_bos: bool, data: st.DataObject
) -> None:
    ids = st.integers(0, len(vocabulary) - 1)
    tokens, scores = zip(*vocabulary, strict=True)
    bos_id = data.draw(st.none() | ids)
    file = TokenizerFile(tokens, scores, bos_id, tuple(data.draw(st.lists(ids, max_size=4))), add_bos, template)
    assert parse_t_file(format_t_file(file), "x.t") == file


def test_files_are_written_and_read(tmp_path: Path) -> None:
    write_t_file(tmp_path / "x.t", FILE)
    assert read_t_file(tmp_path / "x.t") == FILE


def test_older_keys_are_read_as_the_original_reads_them() -> None:
    # eos_id and chat_eos_id join the EOS list, pad_id is ignored, a chat stop text is skipped before the template.
    data = header((0, 1), (1, 5), (2, 4), (3, 3), (4, 4), (5, 99), (6, 2), (8, 5), (7, 2))
    file = parse_t_file(data + b"stops" + b"hi" + TOKENS, "x.t")
    assert file.eos_ids == (4, 2)
    assert file.chat_template == "hi"
    assert file.add_bos  # absent: the original leaves it to chance


def test_the_older_magic_is_read() -> None:
    data = struct.pack("<Iiiiii", 0x567123, 5, 4, 3, 4, -1) + TOKENS
    assert parse_t_file(data, "x.t") == TokenizerFile(FILE.tokens, FILE.scores, 3, (4,), add_bos=True)


def test_a_vocabulary_may_have_no_bos() -> None:
    for header_bytes in (header(*GOOD, (3, -1)), header(*(pair for pair in GOOD if pair[0] != 3))):
        assert parse_t_file(header_bytes + TOKENS, "x.t").bos_id is None


def test_a_file_cut_at_any_byte_is_refused_with_a_sentence() -> None:
    data = format_t_file(FILE)
    for size in range(len(data)):
        assert refusal(data[:size]).endswith("get or convert the file again"), size


GOOD = [(0, 1), (1, 5), (2, 4), (3, 3), (9, 0)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x7fELF" + bytes(40), "begins with 0x464c457f instead of 0x567124"),
        (header(*GOOD, size=7), "header of 7 bytes"),
        (header(*GOOD, size=12), "header of 12 bytes"),
        (header(*GOOD, size=0xFFFFFFF8), "ends too early: the header takes 4294967280 bytes"),
        (header(*GOOD, (11, 0)), "unknown header key 11"),
        (header(*GOOD[1:]), "format version None"),
        (header((0, 2), *GOOD[1:]), "format version 2"),
        (header(*GOOD, (1, 0)), "states 0 tokens"),
        (header(*GOOD, (1, -5)), "states -5 tokens"),
        (header(*GOOD, (1, 2**31 - 1)) + TOKENS, "states 2147483647 tokens"),
        (header(*GOOD, (1, 6)) + TOKENS, "states 6 tokens"),
        (header(*GOOD, (1, 4)) + TOKENS, "goes on for 12 bytes after its 4 tokens"),
        (header(*GOOD, (2, 0)) + TOKENS, "states 0 bytes as the length of its longest token"),
        (header(*GOOD, (2, 3)) + TOKENS, "gives token 4 at byte 95 a length of 4, outside of 1 to 3"),
        (header(*GOOD, (3, 5)) + TOKENS, "states the BOS id 5, outside of its 5 tokens"),
        (header(*GOOD, (3, -2)) + TOKENS, "states the BOS id -2"),
        (header(*GOOD, (4, 5)) + TOKENS, "states the EOS id 5"),
        (header(*GOOD, (9, -1)) + TOKENS, "the EOS ids takes -4 bytes"),
        (header(*GOOD, (9, 2**31 - 1)) + TOKENS, "the EOS ids takes 8589934588 bytes"),
        (header(*GOOD, (7, 2**31 - 1)) + TOKENS, "the chat template takes 2147483647 bytes"),
        (header(*GOOD, (8, -4)) + TOKENS, "the chat stop text takes -4 bytes"),
        (header(*GOOD, (7, 2)) + b"a\xff" + TOKENS, "the chat template is not UTF-8 at byte 57"),
        (header(*GOOD) + TOKENS.replace(struct.pack("<fI", -1.0, 2), struct.pack("<fI", -1.0, 0)), "a length of 0"),
        (header(*GOOD) + TOKENS.replace(b"\x02\0\0\0bc", b"\xff\xff\xff\xffbc"), "a length of 4294967295"),
        (header(*GOOD) + struct.pack("<fI", float("nan"), 1) + b"a" + TOKENS[9:], "token 0 at byte 48 the score nan"),
    ],
)
def test_each_defect_is_named(data: bytes, said: str) -> None:
    assert said in refusal(data)


@settings(max_examples=500, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_file_or_a_sentence(changes: list[tuple[int, int]]) -> None:
    data = bytearray(format_t_file(FILE))
    for position, byte in changes:
        data[position % len(data)] = byte
    try:
        file = parse_t_file(bytes(data), "x.t")
    except DllamaError:
        return
    assert len(file.tokens) == len(file.scores)
    assert file.bos_id is None or 0 <= file.bos_id < len(file.tokens)


@settings(deadline=None)
@given(data=st.binary(max_size=200), magic=st.sampled_from([0x567123, 0x567124]))
def test_any_bytes_give_a_file_or_a_sentence(data: bytes, magic: int) -> None:
    with contextlib.suppress(DllamaError):  # anything else fails the test
        assert parse_t_file(magic.to_bytes(4, "little") + data, "x.t").tokens


def test_a_token_without_bytes_cannot_be_written() -> None:
    with pytest.raises(DllamaError, match="token 1 has no bytes"):
        format_t_file(TokenizerFile((b"a", b""), (0.0, 0.0), bos_id=0, eos_ids=(), add_bos=True))


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.t").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DllamaError, match="has 1073741824 bytes, more than a tokenizer can have"):
        read_t_file(tmp_path / "huge.t")


def test_missing_files_and_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="cannot read the tokenizer"):
        read_t_file(tmp_path / "none.t")
    with pytest.raises(DllamaError, match="cannot write the tokenizer"):
        write_t_file(tmp_path / "none" / "x.t", FILE)
