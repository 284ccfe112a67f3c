"""What one dataclass says of those inside it reaches all of them, in tuples too."""

from experiments.audit import with_context
from gam_jax.layers import Attention, Block, LinearMemory, ParScale, Pattern, Residual
from gam_jax.models import LanguageModel
from gam_jax.nested import held, with_held

NEAR, FAR = Block(Attention(window=4)), Block(Attention(context=32))
PATTERN = Pattern((NEAR, FAR, Residual(LinearMemory(heads=4))), (0, 1, 2, 0, 1), width=16)
MODEL = LanguageModel(PATTERN, 16, 1, vocab=8)


def everywhere(config):
    """The dataclasses inside, however deep."""
    for inner in held(config):
        yield inner
        yield from everywhere(inner)


def test_layers_in_tuples_are_found():
    attentions = [one for one in everywhere(MODEL) if isinstance(one, Attention)]
    assert [one.window for one in attentions] == [4, 0]
    assert {one.width for one in attentions} == {16}


def test_what_changes_nothing_is_the_same_object():
    assert with_held(MODEL, lambda inner: inner) is MODEL


def test_each_attention_in_a_pattern_has_the_prefix_of_its_stream():
    varied = ParScale(PATTERN, streams=2, prefix=3).varied
    assert [one.prefix for one in everywhere(varied) if isinstance(one, Attention)] == [3, 3]


def test_an_audit_of_longer_windows_makes_every_context_longer():
    longer = with_context(MODEL, 3)
    contexts = [one.context for one in everywhere(longer) if isinstance(one, Attention)]
    assert contexts == [3 * one.context for one in everywhere(MODEL) if isinstance(one, Attention)]
