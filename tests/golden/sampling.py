"""Writes tests/golden/sampling.npz: what transformers' logits processors leave of some logits.

  python tests/golden/sampling.py

Needs torch and transformers (extra `official`). The order is that of transformers' `generate`.
"""

import pathlib

import numpy as np

CASES = (  # temperature, top_p, top_k, min_p, repetition_penalty
    (1.0, 1.0, 0, 0.0, 1.0),
    (0.7, 1.0, 0, 0.0, 1.0),
    (1.3, 0.6, 0, 0.0, 1.0),
    (0.5, 0.95, 0, 0.0, 1.0),
    (1.0, 1.0, 5, 0.0, 1.0),
    (1.0, 1.0, 1, 0.0, 1.0),
    (1.5, 1.0, 0, 0.1, 1.0),
    (1.0, 1.0, 0, 0.0, 1.7),
    (1.0, 1.0, 0, 0.0, 0.6),
    (0.8, 0.7, 7, 0.05, 1.2),
    (2.0, 0.9, 12, 0.2, 1.1),
    (1.1, 0.3, 3, 0.0, 2.5),
)
VOCAB, SEEN = 24, 6


def main() -> None:
    """Runs each case on a row of its own."""
    import torch
    from transformers.generation import logits_process as processors

    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((len(CASES), VOCAB))).astype(np.float32)
    seen = random.integers(0, VOCAB, (len(CASES), SEEN))
    left = []
    for row, (temperature, top_p, top_k, min_p, penalty) in enumerate(CASES):
        chosen = [
            processors.RepetitionPenaltyLogitsProcessor(penalty),
            processors.TemperatureLogitsWarper(temperature),
        ]
        if top_k:
            chosen.append(processors.TopKLogitsWarper(top_k))
        if top_p < 1:
            chosen.append(processors.TopPLogitsWarper(top_p))
        if min_p:
            chosen.append(processors.MinPLogitsWarper(min_p))
        ids, scores = torch.tensor(seen[row : row + 1]), torch.tensor(logits[row : row + 1])
        for processor in chosen:
            scores = processor(ids, scores)
        left.append(torch.softmax(scores, dim=-1)[0].numpy())
    path = pathlib.Path(__file__).with_suffix(".npz")
    settings = np.array(CASES, np.float64)
    np.savez(path, logits=logits, seen=seen, settings=settings, probabilities=np.stack(left))


if __name__ == "__main__":
    main()
