"""What reading and writing a model folder takes of memory, beyond what it keeps.

    python -m tests.loading_memory PLACE [MEGABYTES]

makes a random Llama of so many megabytes of bfloat16 in PLACE, and measures each way in a process
of its own: the most memory that it had, less what it had before it opened the folder, over the
bytes of the parameters (of what is written: over those that it held).
"""

from __future__ import annotations

import gc
import json
import pathlib
import subprocess
import sys

WAYS = ("read float32", "read bfloat16", "write float32", "write stored", "from_hf", "to_hf")
"""The first four in Python; the last two are `gam convert`."""


def make(folder: pathlib.Path, megabytes: float) -> None:
    """A Llama of many equal blocks, 256 wide."""
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    from tests.model_folder import library

    width, hidden, vocab = 256, 1024, 1024
    block = 4 * width * width + 3 * width * hidden
    layers = max(2, round((megabytes * 5e5 - 2 * vocab * width) / block))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
    }
    draw = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    tensors = {
        "model.embed_tokens.weight": drawn(vocab, width),
        "model.norm.weight": drawn(width),
        "lm_head.weight": drawn(vocab, width),
    }
    for i in range(layers):
        own = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
        own |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
        own |= {"mlp.down_proj": (width, hidden)}
        own |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        for name, shape in own.items():
            tensors[f"model.layers.{i}.{name}.weight"] = drawn(*shape)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    library(()).save(str(folder / "tokenizer.json"))


def measure(way: str, folder: pathlib.Path) -> dict[str, float]:
    """Bytes of the parameters, and the most memory beyond what there was before."""
    import jax
    import jax.numpy as jnp

    from gam_jax.convert import from_hf, to_hf

    jnp.zeros(()).block_until_ready()
    before = _memory("VmRSS")
    if way.startswith("read"):
        _, params = from_hf(folder, param_dtype=way.split()[1])
    else:
        dtype = "bfloat16" if way == "write stored" else "float32"
        model, params = from_hf(folder, param_dtype=dtype)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if way.startswith("write"):
        gc.collect()
        before = _memory("VmRSS") - kept
        _forget_most()
        written = folder.with_name(way.replace(" ", "-"))
        to_hf(model, params, written, 50_000_000, as_stored=way == "write stored")
    return {"kept": kept, "most": _memory("VmHWM") - before}


def measure_command(way: str, folder: pathlib.Path) -> dict[str, float]:
    """Of `gam convert`: bytes of the parameters, and the most memory over that of imports."""
    from absl import flags

    from experiments import convert

    run = folder.with_name("run")
    words = {"from_hf": [f"--from_hf={folder}"], "to_hf": [f"--to_hf={folder.with_name('back')}"]}
    convert.define_flags()
    flags.FLAGS(["convert", f"--run={run}", *words[way]])
    import jax.numpy as jnp

    jnp.zeros(()).block_until_ready()
    before = _memory("VmRSS")
    _forget_most()
    convert.main()
    numbers = (folder / "model.safetensors").stat().st_size / 2
    return {"kept": 4 * numbers, "most": _memory("VmHWM") - before}


def _memory(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _forget_most() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def measured(way: str, folder: pathlib.Path) -> tuple[float, float]:
    """Bytes that are kept, and the most memory, in a process of its own."""
    words = [sys.executable, "-m", "tests.loading_memory", "--", way, str(folder)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    return found["kept"], found["most"]


def main(place: pathlib.Path, megabytes: float) -> None:
    """Prints a line for each way."""
    folder = place / "llama"
    if not folder.exists():
        make(folder, megabytes)
    for way in WAYS:
        found = subprocess.run(
            [sys.executable, "-m", "tests.loading_memory", "--", way, folder], capture_output=True
        )
        if found.returncode:
            print(way, found.stderr.decode()[-600:])
            continue
        one = json.loads(found.stdout.splitlines()[-1])
        print(
            f"{way:16} keeps {one['kept'] / 1e6:6.1f} MB, at most {one['most'] / one['kept']:.2f}"
        )


if __name__ == "__main__":
    if sys.argv[1] == "--":
        which, where = sys.argv[2], pathlib.Path(sys.argv[3])
        take = measure_command if which in WAYS[4:] else measure
        print(json.dumps(take(which, where)))
    else:
        size = float(sys.argv[2]) if len(sys.argv) > 2 else 200.0
        main(pathlib.Path(sys.argv[1]), size)
