"""Quantized weights, and the numbers that Hugging Face transformers makes of them.

    python tests/golden/quantized.py tests/golden/quantized.npz

It needs torch and transformers.
"""

from __future__ import annotations

import sys

import numpy as np


def main(path: str) -> None:
    """Writes random codes and scales of both formats, every code and odd exponents among them."""
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 6, 3, 16), np.uint8)
    blocks[0, :, :, :] = np.arange(6 * 3 * 16, dtype=np.uint8).reshape(6, 3, 16)
    scales = rng.integers(110, 140, (2, 6, 3), np.uint8)
    scales[1, 0] = 0, 1, 252
    plain = convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
    )
    codes = rng.integers(0, 256, (24, 40), np.uint8)
    codes[codes % 128 == 127] = 0  # no NaN
    each = rng.uniform(1e-4, 3, (3, 5)).astype(np.float32)
    weight = torch.tensor(codes).view(torch.float8_e4m3fn)
    product = Fp8Dequantize(None)._dequantize_one(weight, torch.tensor(each), torch.float32)
    np.savez_compressed(
        path,
        mxfp4_blocks=blocks,
        mxfp4_scales=scales,
        mxfp4=plain.numpy(),
        fp8_codes=codes,
        fp8_scales=each,
        fp8=product.numpy(),
    )


if __name__ == "__main__":
    main(sys.argv[1])
