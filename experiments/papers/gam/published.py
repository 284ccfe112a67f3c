"""What the GAM paper (arXiv 2509.00605) and its repository (rishiraj/gam, README) report."""

from __future__ import annotations

LOSS = {
    "gam": 6.7828,
    "transformer": 6.8233,
    "mamba": 6.9251,
    "gam_stories": 3.1418,
    "transformer_stories": 3.1591,
}
"""Table 1: validation loss, nats per token. Mamba's on TinyStories is not reported."""

EPOCH_SECONDS = {
    "gam": 117.2,
    "transformer": 131.9,
    "mamba": 127.1,
    "gam_stories": 601.4,
    "transformer_stories": 671.6,
}
"""Table 1: seconds of training in an epoch."""

MILLISECONDS = {
    "gam": {256: 8.97, 512: 13.09, 1024: 25.86, 2048: 51.94, 4096: 105.03, 8192: 217.30},
    "at_once": {256: 8.90, 512: 23.86, 1024: 74.19, 2048: 279.37},
}
"""Table 2: forward and backward of a block; beyond 2,048 the Transformer is out of memory."""

MEGABYTES = {
    "gam": {256: 179, 512: 325, 1024: 618, 2048: 1202, 4096: 2370, 8192: 4707},
    "at_once": {256: 216, 512: 553, 1024: 1965, 2048: 7484},
}
"""Table 2: peak memory of the same."""

ABLATION_PERPLEXITY = {"gam": 900.84, "global": 905.45, "sum": 942.59, "local": 944.70}
"""Table 3, WikiText-2. The full model has 882.57 in Table 1: one run each, no seed fixed."""

MILLIONS = {"gam": 22.6, "sum": 19.4, "global": 19.4, "local": 17.9}
"""Table 3: parameters."""
