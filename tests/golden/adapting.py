"""Models of transformers learn another rule by adapters alone, and answer by it with PEFT.

    python tests/golden/adapting.py PLACE --gam=PYTHON

makes what `finetuning.py` makes and trains each model on its rule: three letters are answered the
other way round. Then adapters alone learn, on those folders, to answer them as they are: on four
emulated devices with parameters in shards, killed by signal 9 on the way and resumed. PEFT opens
the adapters on the model of the first rule; transformers opens the merged folder. Both answer
prompts that were in no conversation. It needs torch, transformers and peft.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess

import finetuning

ON = {
    "Llama": "mixer/*,ffn/*",
    "Qwen2": "mixer/*,ffn/*",
    "Mamba2": "inner/w_zx,inner/w_bc,inner/w_dt",
}


def copied(place: pathlib.Path) -> None:
    """The same conversations, of which each answer is the question."""
    lines = []
    for line in (place / "my.jsonl").read_text().splitlines():
        turns = json.loads(line)["messages"]
        turns[1]["content"] = turns[0]["content"]
        lines.append(json.dumps({"messages": turns}) + "\n")
    (place / "my.jsonl").write_text("".join(lines))


def adapt(python: str, place: pathlib.Path, name: str) -> None:
    """The second rule: a run of adapters, and what is written of it."""
    (place / f"{name}-tuned").rename(place / name)
    finetuning.train(python, place, name, f"--adapt={ON[name]}", "--rank=8", "--alpha=16")
    peft = [f"--run={place / name}-run", f"--to-peft={place / name}-peft"]
    subprocess.run([python, "-m", "experiments.convert", *peft], check=True)


def main() -> None:
    """Prints three lines a model: the first rule's, then the second's by PEFT, and merged."""
    import peft
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=pathlib.Path)
    parser.add_argument("--gam", required=True)
    parser.add_argument("--models", nargs="*", default=list(ON))
    args = parser.parse_args()
    words = finetuning.make(args.place)
    for name in args.models:
        finetuning.train(args.gam, args.place, name)
    copied(args.place)
    for name in args.models:
        for old in (f"{name}-run", f"{name}-before"):
            (args.place / old).rename(args.place / f"{old}-1")
        adapt(args.gam, args.place, name)
        before, merged = (args.place / f"{name}-{which}" for which in ("before", "tuned"))
        base = transformers.AutoModelForCausalLM.from_pretrained(before)
        adapted = peft.PeftModel.from_pretrained(base, args.place / f"{name}-peft").eval()
        for which, folder, model in (
            ("before", before, None),
            ("peft", before, adapted),
            ("merged", merged, None),
        ):
            right, _ = finetuning.answered(folder, words, model, same=True)
            print(f"{name} {which}: {right} of {finetuning.ASKED} as they are", flush=True)


if __name__ == "__main__":
    main()
