"""What must be exactly so of lexical units, by any parameters; and the measure of equal texts."""

import numpy as np

from experiments.papers.lexical_unit_decoding import PROMPT, STUDY, _same, identities
from experiments.study import Setting


def test_no_identity_fails():
    assert identities(Setting("short"), 0) == {"errors": 0.0}


def test_texts_are_compared_up_to_their_first_difference():
    wanted = np.arange(PROMPT + 4)
    assert _same(wanted.tolist(), wanted) == 1.0
    assert _same([*wanted[:-2], 0, wanted[-1]], wanted) == 0.5


def test_every_way_to_write_is_measured():
    assert {"tokens_0.6", "same_0.6", "checked_same_0.3"} <= set(STUDY.measures)
