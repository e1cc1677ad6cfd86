r"""The chat formats that distributed-llama knows by name, as Jinja templates.

Where the original departs from the models' own formats, the models are followed: every turn of ChatML and of Llama 3
ends in its own end token, and the answer's beginning stands once, at the end. Sources: the model cards of Llama 2 and
Llama 3, DeepSeek-R1's `tokenizer_config.json`, ChatML as Qwen and SmolLM2 write it.
"""

from __future__ import annotations

from dllama_gpu.errors import DllamaError

_LLAMA2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}"
    "{{ bos_token }}[INST] "
    "{% if system is not none and loop.index0 == 1 %}<<SYS>>\n{{ system | trim }}\n<</SYS>>\n\n{% endif %}"
    "{{ message.content | trim }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content | trim }} {{ eos_token }}"
    "{% elif loop.index0 > 0 %}{{ raise_exception('a system message may only come first') }}"
    "{% endif %}{% endfor %}"
)

_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

_DEEPSEEK3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHAT_KINDS: dict[str, str] = {
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "deepseek3": _DEEPSEEK3,
    "chatml": _CHATML,
}
"""Templates by the names that `--chat-template` takes (in any case)."""

_MARKS = (
    ("[INST]", "llama2"),
    ("<|start_header_id|>", "llama3"),
    ("<｜Assistant｜>", "deepseek3"),
    ("<|im_start|>", "chatml"),
)


def chat_kind(name: str) -> str:
    """The template of this name, in any case. Raises DllamaError for a name that is none."""
    if name.lower() not in CHAT_KINDS:
        raise DllamaError(f"there is no chat template {name!r}; choose one of {', '.join(CHAT_KINDS)}")
    return CHAT_KINDS[name.lower()]


def detect_chat_kind(template: str) -> str | None:
    """The kind whose mark a stored template contains, in the original's order; None when there is no mark."""
    return next((kind for mark, kind in _MARKS if mark in template), None)
