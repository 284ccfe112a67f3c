"""In float64 remembered states, drafts and meshes change no text and no log probability."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gam_jax.layers import GAM, MLP, Attention, Block, LinearMemory, Pattern
from gam_jax.models.language import LanguageModel
from gam_jax.serve.device import Device
from gam_jax.serve.drafts import NgramDraft, RunDraft
from gam_jax.serve.seating import Settings
from tests.examples import WIDTH, random_like
from tests.float64 import double_rows, of_double
from tests.gam_jax.serve.test_real import COLD, LIMIT, VOCAB, requests, served
from tests.meshes import layout_of

GATED_DELTA = LinearMemory(variant="gated_deltanet", heads=2)
MIXERS = {
    "gam": GAM(slots=8),
    "gated delta": GATED_DELTA,
    "attention": Attention(heads=2, context=64),
}
BLOCKS = {name: Block(mixer, MLP(expansion=1)) for name, mixer in MIXERS.items()}
MODELS = {
    "all three": Pattern(tuple(BLOCKS.values()), (0, 1, 2)),
    **{name: pytest.param(block, marks=pytest.mark.slow) for name, block in BLOCKS.items()},
}
ROUNDING = 1e-9


def scored(ones):
    """Ids, and the log probabilities of those drawn and of the likeliest."""
    ids = [[token.id for token in one.told[:-1]] for one in ones]
    log_probs = [
        [(token.log_prob, *(value for _, value in token.top)) for token in one.told[:-1]]
        for one in ones
    ]
    return ids, log_probs


@pytest.mark.parametrize("block", MODELS.values(), ids=MODELS)
def test_hits_drafts_and_meshes_change_nothing_but_rounding(block, monkeypatch):
    """The draft is the model itself, on the other mesh: it guesses right."""
    sizes = {"limit": LIMIT, "page": 4}
    with double_rows(monkeypatch):
        model = LanguageModel(block, WIDTH, depth=1, vocab=VOCAB, dtype="float64")
        params = of_double(random_like(model.table()))
        one = Device(model, params, 4, block=4, widths=(4, 1), **sizes)
        split = Device(model, params, 4, layout=layout_of((2, 1, 2)), widths=(1,), **sizes)
        for device in (one, split):
            device.compile()
        wanted = requests(np.random.default_rng(0), 5)
        wanted = [{**one, "draws": dataclasses.replace(one["draws"], top=2)} for one in wanted]
        plain, _ = served(one, wanted, COLD)
        ids, log_probs = scored(plain)
        assert log_probs[0][0][0].hex()[-5:] != "00000"  # of float64 indeed

        def check(found, wanted, case):
            own, values = scored(found)
            assert own == wanted[0], case
            for x, y in zip(values, wanted[1], strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=ROUNDING, err_msg=case)

        elsewhere, _ = served(split, wanted, COLD)
        check(elsewhere, (ids, log_probs), "another mesh")
        warm, counts = served(one, wanted * 2, Settings(prefill_budget=8))
        check(warm, (ids * 2, log_probs * 2), "remembered")
        assert counts.cached > 0
        drafted, counts = served(one, wanted, draft=NgramDraft(), always=True)
        check(drafted, (ids, log_probs), "ngram")
        assert 0 < counts.accepted < counts.guessed
        drafted, counts = served(one, wanted, draft=RunDraft(split, one.sizes), always=True)
        check(drafted, (ids, log_probs), "run")
        assert counts.accepted == counts.guessed > 0
