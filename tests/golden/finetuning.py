"""Models of Hugging Face transformers that learn a rule here, and answer by it there.

    python tests/golden/finetuning.py PLACE --gam=PYTHON

makes a tiny random Llama, Qwen2 and Mamba-2 with a tokenizer of letters and a chat template, and
200 conversations in which two letters are answered the other way round. PYTHON, an interpreter
with gam_jax, trains each folder on four emulated devices with its parameters in shards, is killed
by signal 9 on the way, goes on and writes a folder. Here transformers reads that and answers
prompts that were in no conversation; so it does with the folder as it was before. It needs torch
and transformers.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import signal
import subprocess
import time
from typing import Any

LETTERS = "abcdefghijklmnopqrst"
WORDS = "user" + "assistant"
NEWLINE = "\u010a"
"""A line end, as tokenizers of bytes write it."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2}
HEADS = {
    **SIZES,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS = {
    "Llama": HEADS,
    "Qwen2": {**HEADS, "tie_word_embeddings": True},
    "Mamba2": {
        **SIZES,
        "expand": 2,
        "head_dim": 16,
        "num_heads": 8,
        "state_size": 32,
        "n_groups": 1,
        "chunk_size": 16,
        "tie_word_embeddings": True,
    },
}
"""Class -> its config.json. The vocabulary is larger than the tokenizer's, as padded ones are."""
COUNT, ASKED, MOST = 200, 100, 8
STEPS, KILLED = 300, 120
SETTINGS = {
    "data.format": "chat",
    "data.window": 56,
    "train.batch": 16,
    "train.steps": STEPS,
    "train.validate_every": 100,
    "checkpoint.every": 50,
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.3,
    "parallel.preset": "fully_sharded",
}


def make(place: pathlib.Path) -> list[str]:
    """Folders and conversations; the words that are asked for afterwards."""
    place.mkdir(parents=True)
    every = [a + b for a in LETTERS for b in LETTERS]
    random.Random(0).shuffle(every)
    lines = []
    for word in every[:COUNT]:
        turns = [("user", word), ("assistant", word[::-1])]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (place / "my.jsonl").write_text("".join(lines))
    for name in MODELS:
        make_model(name, place / name)
    return every[COUNT : COUNT + ASKED]


def make_model(name: str, folder: pathlib.Path) -> None:
    """A random model of transformers with its tokenizer, as these libraries save them."""
    import tokenizers
    import torch
    import transformers

    letters = sorted(set(LETTERS + WORDS + NEWLINE))
    vocab = {letter: i for i, letter in enumerate(letters)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(list(SPECIAL))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{name}Config")(**MODELS[name], bos_token_id=None, **ids)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(folder)


def train(python: str, place: pathlib.Path, name: str, *more: str) -> None:
    """Trains a folder, is killed on the way, goes on, and writes a folder; `more` are flags."""
    run = place / f"{name}-run"
    command = [python, "-m", "experiments.train", f"--init=hf:{place / name}", f"--run={run}"]
    command += ["--resume", "--emulate=4", "--mesh=data=4", *more]
    own = {"data.name": f"text:{place / 'my.jsonl'}", "data.dir": place / "data", **SETTINGS}
    command += [f"--config.{field}={value}" for field, value in own.items()]
    with (place / f"{name}.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        while first.poll() is None and last_step(run) < KILLED:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, f"it ended by itself: see {log.name}"
        (place / name).rename(place / f"{name}-before")
        subprocess.run(command, stdout=log, stderr=log, check=True)
        convert = [python, "-m", "experiments.convert", f"--run={run}"]
        convert += [f"--to-hf={place / name}-tuned"]
        subprocess.run(convert, stdout=log, stderr=log, check=True)


def last_step(run: pathlib.Path) -> int:
    """The last step whose line the run has written."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def answered(
    folder: pathlib.Path, words: list[str], model: Any = None, same: bool = False
) -> tuple[int, int]:
    """How many words transformers answers by the rule, and how often it stops at the end mark.

    Args:
      folder: of the model, or of its tokenizer alone.
      words: that are asked.
      model: another than the folder's.
      same: the rule is to answer a word as it is.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if model is None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    right = stopped = 0
    for word in words:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": word}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        found = model.generate(**asked, max_new_tokens=MOST, do_sample=False)[0]
        answer = found[asked["input_ids"].shape[1] :]
        stopped += len(answer) < MOST and int(answer[-1]) == tokenizer.eos_token_id
        wanted = word if same else word[::-1]
        right += tokenizer.decode(answer, skip_special_tokens=True) == wanted
    return right, stopped


def main() -> None:
    """Prints a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=pathlib.Path)
    parser.add_argument("--gam", required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    words = make(args.place)
    for name in args.models:
        train(args.gam, args.place, name)
        for which in ("before", "tuned"):
            right, stopped = answered(args.place / f"{name}-{which}", words)
            print(f"{name} {which}: {right} of {ASKED} right, {stopped} stopped", flush=True)


if __name__ == "__main__":
    main()
