"""What the ParScale paper published (arXiv 2505.10475): final losses by size and streams."""

from __future__ import annotations

from gam_jax.scaling import Run

LAYERS, KV_HEADS, HEADS, PREFIX = 36, 2, 16, 48

SIZES = {
    896: 535_813_376,
    1024: 693_753_856,
    1280: 1_088_376_320,
    1536: 1_571_472_384,
    2048: 2_774_773_760,
    2560: 4_353_203_200,
}
"""Width -> parameters of one stream, without embeddings."""

LOSSES = {
    "stack": {
        1: (1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213),
        2: (1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025),
        4: (1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906),
        8: (1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794),
    },
    "pile": {
        1: (2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451),
        2: (2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137),
        4: (2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938),
        8: (2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772),
    },
}
"""Corpus (Stack-V2-Python, the Pile) -> streams -> loss for each of SIZES."""

COEFFICIENTS = {
    "stack": {"E": 0.69124, "A": 1.1306e7, "alpha": 0.18937, "k": 0.39345},
    "pile": {"E": 1.28883, "A": 1.9730e8, "alpha": 0.19636, "k": 0.33442},
}
"""What the official script fits to those tables."""

SAVED = {"memory": 22.0, "seconds": 6.0}
"""How many times less P = 8 adds at batch 1 than as good a loss by parameters, as the text says."""

SCRIPTED = {(1, "memory"): 17.6, (1, "seconds"): 5.5, (8, "memory"): 2.8, (8, "seconds"): 0.75}
"""(batch, of what) -> the same by the paper's own script."""


def added_params(width: int, streams: int) -> int:
    """What P streams add: P D^2 + D + D P + P of the aggregator, 2 L P K m d of the prefixes."""
    if streams == 1:
        return 0
    aggregator = streams * width**2 + width + width * streams + streams
    return aggregator + 2 * LAYERS * streams * KV_HEADS * PREFIX * width // HEADS


def runs(corpus: str) -> list[Run]:
    """The published table of a corpus."""
    return [
        Run(
            base + added_params(width, streams),
            streams,
            loss,
        )
        for streams, losses in LOSSES[corpus].items()
        for (width, base), loss in zip(SIZES.items(), losses, strict=True)
    ]
