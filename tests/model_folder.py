"""A small model folder of Hugging Face with a tokenizer of letters, as somebody would bring it."""

from __future__ import annotations

import json
import pathlib
import shutil

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GOLDEN = pathlib.Path(__file__).parent / "golden"
LETTERS = "\nĊ abcdefghijklmnopqrstuvwxyz.Ġ"
MARKS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def library(special: tuple[str, ...]) -> Tokenizer:
    """Single letters, and special tokens behind them."""
    vocab = {letter: i for i, letter in enumerate(dict.fromkeys(LETTERS))}
    made = Tokenizer(models.BPE(vocab, [], unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return made


def model_folder(
    path: pathlib.Path, golden: str = "hf_llama", special: tuple[str, ...] = MARKS
) -> pathlib.Path:
    """A golden model of 48 ids with a tokenizer of 31 letters and these special tokens."""
    shutil.copytree(GOLDEN / golden, path)
    made = library(special)
    made.save(str(path / "tokenizer.json"))
    kept = {
        "tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>", "bos_token": None}),
        "chat_template.jinja": CHATML,
        "generation_config.json": json.dumps({"eos_token_id": made.token_to_id("<|im_end|>")}),
        "LICENSE": "to be kept",
    }
    for name, text in kept.items():
        (path / name).write_text(text)
    return path


def conversations(path: pathlib.Path, count: int = 40) -> pathlib.Path:
    """Questions of two letters, answered by the same two the other way round."""
    letters = "abcdefghij"
    pairs = [(letters[i % 10], letters[(i // 10 + i) % 10]) for i in range(count)]
    lines = []
    for a, b in pairs:
        turns = [("user", a + b), ("assistant", b + a)]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path
