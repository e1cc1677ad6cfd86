"""The 256 printable characters under which byte-level vocabularies store bytes.

Source: GPT-2's `bytes_to_unicode`. Printable Latin-1 characters stand for themselves; the other bytes, in order, for
U+0100 and following (so a space is stored as `Ġ`, a newline as `Ċ`).
"""

from __future__ import annotations

_PRINTABLE = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_TO_CHARACTER: dict[int, str] = {
    **{byte: chr(byte) for byte in _PRINTABLE},
    **{byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)},
}


class _CharacterToBytes(dict[str, bytes]):
    def __missing__(self, character: str) -> bytes:
        return character.encode("utf-8")


_CHARACTER_TO_BYTES = _CharacterToBytes(
    {character: bytes([byte]) for byte, character in BYTE_TO_CHARACTER.items()},
)


def decode_token(text: str) -> bytes:
    """Bytes of a stored token; characters outside the alphabet stand for their UTF-8."""
    return b"".join(map(_CHARACTER_TO_BYTES.__getitem__, text))
