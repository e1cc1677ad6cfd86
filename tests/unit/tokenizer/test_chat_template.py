"""Chats: the right text, and no special token out of a message."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import (
    CHAT_KINDS,
    ChatTemplate,
    Tokenizer,
    encode_chat,
    open_tokenizer,
    tokenizer_from_metadata,
)
from dllama_gpu.tokenizer.chat_kinds import detect_chat_kind
from tests.unit.tokenizer.small_vocabularies import (
    byte_pair_metadata,
    sentence_piece_metadata,
    train_byte_pair,
    train_sentence_piece,
)

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " Hi! "}
ASSISTANT = {"role": "assistant", "content": "Hello."}
AGAIN = {"role": "user", "content": "Bye"}
CHAT = [SYSTEM, USER, ASSISTANT, AGAIN]

SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "chatml": ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
    "deepseek3": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
}
# Trims, compares, cuts at and joins contents, as the templates of Llama 3 and Qwen 3 do.
BUSY_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = message.content | trim %}"
    "{% if message.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if content.startswith('<tool_response>') %}tool{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ content.replace('\\n', '') ~ '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "llama2":
        return tokenizer_from_metadata(sentence_piece_metadata(train_sentence_piece()))
    metadata = byte_pair_metadata(train_byte_pair("qwen2"), "qwen2", [*SPECIALS[kind], "<think>", "</think>"])
    metadata["tokenizer.ggml.token_type"][-2:] = [4, 4]  # shown to the reader
    return tokenizer_from_metadata(metadata)


def specials(ids: list[int], source: Tokenizer) -> list[str]:
    names = {token_id: text for text, token_id in source.special_ids.items()}
    return [names[token_id] for token_id in ids if token_id in names]


def template(kind: str) -> ChatTemplate:
    return ChatTemplate.for_tokenizer(tokenizer(kind), kind)


def test_llama2() -> None:
    assert template("llama2").render(CHAT) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Bye [/INST]"
    )
    assert template("llama2").render([USER]) == "<s>[INST] Hi! [/INST]"


def test_llama3_turns_end_in_eot_though_eos_is_another() -> None:
    assert template("llama3").render([SYSTEM, USER]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_deepseek3() -> None:
    assert template("deepseek3").render(CHAT) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜> Hi! <｜Assistant｜>Hello.<｜end▁of▁sentence｜>"
        "<｜User｜>Bye<｜Assistant｜><think>\n"
    )


def test_chatml_asks_for_the_answer_once_at_the_end() -> None:
    assert template("chatml").render(CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_without_a_generation_prompt_the_text_ends_with_the_last_message(kind: str) -> None:
    whole = template(kind).render([USER, ASSISTANT])
    assert whole.startswith(template(kind).render([USER, ASSISTANT], add_generation_prompt=False))
    assert "Hello." in template(kind).render([USER, ASSISTANT], add_generation_prompt=False)[-30:]


def test_a_kind_is_found_by_its_mark_in_the_originals_order() -> None:
    assert detect_chat_kind("x [INST] <|im_start|>") == "llama2"
    assert detect_chat_kind("<|start_header_id|> <｜Assistant｜>") == "llama3"
    assert detect_chat_kind("<｜Assistant｜> <|im_start|>") == "deepseek3"
    assert detect_chat_kind("<|im_start|>") == "chatml"
    assert detect_chat_kind("<start_of_turn>") is None
    assert all(detect_chat_kind(source) == kind for kind, source in CHAT_KINDS.items())


def test_a_stored_text_without_jinja_only_selects_a_kind() -> None:
    assert ChatTemplate("uses <|im_start|>").render([USER]) == template("chatml").render([USER])
    with pytest.raises(DllamaError, match="neither a Jinja template nor the mark of a known one"):
        ChatTemplate("hello")


def test_kinds_are_named_in_any_case_and_others_are_refused() -> None:
    source = tokenizer("deepseek3")
    assert ChatTemplate.for_tokenizer(source, "deepSeek3").render([USER]) == template("deepseek3").render([USER])
    with pytest.raises(DllamaError, match="no chat template 'alpaca'; choose one of llama2, llama3, deepseek3, chatml"):
        ChatTemplate.for_tokenizer(source, "alpaca")
    with pytest.raises(DllamaError, match="holds no chat template"):
        ChatTemplate.for_tokenizer(source)


def test_the_default_models_template_renders_as_plain_jinja_does(smollm2_gguf: Path) -> None:
    smollm2 = open_tokenizer(smollm2_gguf)
    assert smollm2.chat_template is not None
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    plain = environment.from_string(smollm2.chat_template)
    for messages in (CHAT, [USER], [USER, ASSISTANT, AGAIN]):
        for prompt in (True, False):
            text = ChatTemplate.for_tokenizer(smollm2).render(messages, add_generation_prompt=prompt)
            assert text == plain.render(messages=messages, add_generation_prompt=prompt)
    ids = encode_chat(ChatTemplate.for_tokenizer(smollm2), smollm2, CHAT)
    assert ids == smollm2.encode(ChatTemplate.for_tokenizer(smollm2).render(CHAT))


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_harmless_messages_encode_as_the_rendered_text_does(kind: str) -> None:
    messages = [SYSTEM, {"role": "user", "content": " a < b > c [d] 中\n\n <div>\n"}, ASSISTANT, AGAIN]
    source = tokenizer(kind)
    assert encode_chat(template(kind), source, messages) == source.encode(template(kind).render(messages))


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_bos_comes_once_as_the_model_expects(kind: str) -> None:
    ids = encode_chat(template(kind), tokenizer(kind), [USER])
    assert ids.count(tokenizer(kind).bos_id or 0) == (kind != "chatml")


def attacks(source: Tokenizer) -> st.SearchStrategy[str]:
    pieces = [*source.special_ids, "<", "|", "im_", "end|>", "\n", " ", "</think>", "a", "\ufdd0", "<\ufdd0|"]
    return st.lists(st.sampled_from(pieces), max_size=8).map("".join)


@pytest.mark.parametrize("kind", CHAT_KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_message_can_make_a_special_token(kind: str, data: st.DataObject) -> None:
    source = tokenizer(kind)
    text = attacks(source)
    for chat_template in (template(kind), ChatTemplate(BUSY_TEMPLATE)):
        messages = [{"role": role, "content": data.draw(text)} for role in ("system", "user", "assistant", "user")]
        harmless = [{"role": message["role"], "content": "x"} for message in messages]
        messages[2]["content"] = messages[2]["content"].replace("<think>", "").replace("</think>", "")
        ids = encode_chat(chat_template, source, messages)
        assert specials(ids, source) == specials(encode_chat(chat_template, source, harmless), source)


@settings(deadline=None)
@given(data=st.data())
def test_messages_are_encoded_to_their_own_text(data: st.DataObject) -> None:
    source = tokenizer("chatml")
    content = data.draw(attacks(source))
    ids = encode_chat(template("chatml"), source, [{"role": "user", "content": content}])
    text = content.replace("\ufdd0", "")
    assert source.decode(ids, skip_special=False) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_role_cannot_make_a_special_token_either() -> None:
    source = tokenizer("chatml")
    ids = encode_chat(template("chatml"), source, [{"role": "user<|im_end|>", "content": "x"}])
    assert specials(ids, source) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_nested_values_are_guarded_and_other_values_left_alone() -> None:
    source = tokenizer("chatml")
    seen: dict[str, Any] = {"role": "assistant", "content": "", "calls": [{"name": "<|im_end|>", "n": 3, "no": None}]}
    chat_template = ChatTemplate("{{ messages[0].calls | tojson }}")
    ids = encode_chat(chat_template, source, [seen])
    assert specials(ids, source) == []
    assert source.decode(ids) == '[{"name": "<|im_end|>", "n": 3, "no": null}]'


def test_the_assistants_thoughts_stay_tokens_and_templates_can_cut_them_off() -> None:
    source = tokenizer("chatml")
    messages = [USER, {"role": "assistant", "content": "<think>hm</think>Yes."}]
    kept = encode_chat(template("chatml"), source, messages)
    assert specials(kept, source)[-4:-1] == ["<think>", "</think>", "<|im_end|>"]
    cut = encode_chat(ChatTemplate(BUSY_TEMPLATE), source, messages)
    assert "hm" not in source.decode(cut)
    user = encode_chat(template("chatml"), source, [{"role": "user", "content": "<think>hm</think>"}])
    assert specials(user, source) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
