"""Text to token ids and back: vocabularies, the files they come in, and chat templates."""

from dllama_gpu.tokenizer.chat_kinds import CHAT_KINDS
from dllama_gpu.tokenizer.chat_template import ChatTemplate, Message, encode_chat
from dllama_gpu.tokenizer.detokenizer import IncrementalDetokenizer
from dllama_gpu.tokenizer.gguf_vocabulary import (
    t_file_from_gguf,
    t_file_from_metadata,
    tokenizer_from_gguf,
    tokenizer_from_metadata,
)
from dllama_gpu.tokenizer.open_tokenizer import open_tokenizer
from dllama_gpu.tokenizer.t_file import TokenizerFile, read_t_file, write_t_file
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from dllama_gpu.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CHAT_KINDS",
    "ChatTemplate",
    "IncrementalDetokenizer",
    "Message",
    "Tokenizer",
    "TokenizerFile",
    "encode_chat",
    "open_tokenizer",
    "read_t_file",
    "t_file_from_gguf",
    "t_file_from_metadata",
    "tokenizer_from_gguf",
    "tokenizer_from_metadata",
    "tokenizer_from_t_file",
    "write_t_file",
]
