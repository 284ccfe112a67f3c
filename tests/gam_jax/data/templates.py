"""Chat templates as people write them, each beside the same in Python, which shares no code.

The Python gives a conversation as pieces of text, with whether each counts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|/head|>", "<|eot|>",
)  # fmt: skip
BOS, EOS = "<|begin|>", "<|endoftext|>"

Pieces = list[tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Written:
    """A template and its reading.

    Attributes:
      source: in jinja.
      pieces: the same in Python.
      system: whether it takes a message of the system.
    """

    source: str
    pieces: Callable[[list[dict[str, Any]]], Pieces]
    system: bool = True


def _chatml(messages):
    found = []
    for m in messages:
        answer = m["role"] == "assistant"
        found += [(f"<|im_start|>{m['role']}\n", False)]
        found += [(f"{m['content']}<|im_end|>", answer), ("\n", False)]
    return found


def _llama(messages):
    found = [(BOS, False)]
    for m in messages:
        answer = m["role"] == "assistant"
        found += [(f"<|head|>{m['role']}<|/head|>\n\n", False)]
        found += [(f"{m['content'].strip()}<|eot|>", answer)]
    return found


def _zephyr(messages):
    found = []
    for m in messages:
        answer = m["role"] == "assistant"
        # The invitation is the head without its line end, which therefore the assistant writes.
        found += [(f"<{m['role']}>", False), (f"\n{m['content']}{EOS}", answer), ("\n", False)]
    return found


def _gemma(messages):
    found = [(BOS, False)]
    for m in messages:
        answer = m["role"] == "assistant"
        role = "model" if answer else m["role"]
        found += [(f"<|im_start|>{role}\n", False)]
        found += [(f"{m['content'].strip()}<|im_end|>", answer), ("\n", False)]
    return found


def _inst(messages):
    found = [(BOS, False)]
    for m in messages:
        if m["role"] == "assistant":
            found += [(f" {m['content'].strip()}{EOS}", True)]
        else:
            found += [(f"[INST] {m['content']} [/INST]", False)]
    return found


def _names(messages):
    found = []
    for m in messages:
        found += [(f"{m['role'].title()}: ", False)]
        found += [(f"{m['content']}\n", m["role"] == "assistant")]
    return found


CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CHATML_MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
"""
LLAMA = """\
{%- for message in messages -%}
{%- if loop.first %}{{ bos_token }}{% endif -%}
{%- set content = message['content'] | trim -%}
{{ '<|head|>' + message['role'] + '<|/head|>\\n\\n' + content + '<|eot|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif -%}
"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<user>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<system>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<assistant>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{- '<assistant>' -}}
{% endif %}
{% endfor %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate') }}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>model\\n' }}{%- endif -%}
"""
INST = """\
{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- ' ' + message['content'] | trim + eos_token }}
{%- else %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- endif %}
{%- endfor %}"""
NAMES = """\
{% for message in messages %}
{{ message.role.title() }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}Assistant: {% endif %}
"""

TEMPLATES = {
    "chatml": Written(CHATML, _chatml),
    "chatml, marked": Written(CHATML_MARKED, _chatml),
    "llama": Written(LLAMA, _llama),
    "zephyr": Written(ZEPHYR, _zephyr),
    "gemma": Written(GEMMA, _gemma, system=False),
    "inst": Written(INST, _inst, system=False),
    "names": Written(NAMES, _names),
}

THINKS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think></think>' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
UNINVITED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}"""
OTHERWISE = UNINVITED + "{% if add_generation_prompt %}Answer now: {% endif %}"
EMPTY_MARKS = UNINVITED + "{% generation %}{% endgeneration %}"


def save(folder, template, tokenizer):
    """A folder with a tokenizer and that template, as people publish them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "chat_template": template,
        "bos_token": BOS,
        "eos_token": {"content": EOS, "special": True},
        "add_bos_token": True,
        "model_max_length": 10**30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def make_tokenizer():
    """A byte-level BPE that puts BOS before what it encodes, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the assistant said yes yes\n\n and\n\n the user no"] * 9, trainer
    )
    first = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, first)]
            ),
        ]
    )
    return tokenizer
