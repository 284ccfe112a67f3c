"""Whether a language model suits what it is to be trained on: checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gam_jax.layers import Layer
from gam_jax.nested import held
from gam_jax.ops.rotary import Positions
from sharding.errors import UserError

if TYPE_CHECKING:
    from gam_jax.models.language import LanguageModel


def check_data(model: LanguageModel, sizes: Mapping[str, int], name: str) -> None:
    """Refuses data that the model cannot read.

    Args:
      model: what reads.
      sizes: of the data, see `Dataset.sizes`.
      name: of the data.

    Raises:
      UserError: the data have no vocabulary, a larger one than the model's, longer windows than it
        takes, or packed rows whose documents it cannot keep apart or cannot know the length of.
    """
    vocab, window = sizes.get("vocab"), sizes.get("window", 0)
    if vocab is None:
        raise UserError(
            f"data.name={name} has no vocabulary: a LanguageModel reads text or other sequences "
            f"of ids"
        )
    if model.vocab is not None and model.vocab < vocab:
        raise UserError(
            f"model.vocab={model.vocab} but the tokenizer has {vocab} ids: leave model.vocab out, "
            f"or use the tokenizer that the model was made for"
        )
    if model.context and model.context < window:
        raise UserError(
            f"data.window={window} is longer than the {model.context} learned positions of "
            f"model.context: lower the one or raise the other"
        )
    if sizes.get("packed", 0) and any(window > p.reach for p in positions_in(model)):
        raise UserError(
            f"data.documents=packed: in rows of data.window={window} documents are of any length, "
            f"and the model's positions turn by the length of each: use a shorter window, or rows"
        )
    if sizes.get("packed", 0) and (layer := model.cannot_pack()):
        raise UserError(
            f"data.documents=packed: {layer} cannot keep the documents of a row apart: use rows "
            f"or joined"
        )


def check_causal(block: Layer) -> None:
    """Raises a ValueError for a layer that sees tokens that it is to predict."""
    if not block.causal:
        raise ValueError(
            "LanguageModel.block holds a layer that reads the whole sequence at once, so it "
            "cannot predict a next token; give a causal one"
        )


def check_length(model: LanguageModel, tokens: int) -> None:
    """Raises a ValueError if a sequence of `tokens` tokens exceeds the model's limit."""
    if model.context and tokens > model.context:
        raise ValueError(
            f"{tokens} tokens do not fit the model's {model.context} learned positions: "
            f"give fewer, or train with context=0 (no positions) or a larger one"
        )
    if model.limit and tokens > model.limit:
        raise ValueError(
            f"{tokens} tokens do not fit the model's cache of {model.limit}: give fewer, or "
            f"set a larger context in its attention layers"
        )


def check_reach(model: LanguageModel, tokens: int) -> None:
    """Raises a ValueError for a sequence in parts that is longer than the positions are for."""
    for positions in positions_in(model):
        positions.reaching(tokens, whole=False)


def positions_in(config: Any) -> Iterator[Positions]:
    """All that a layer or model has inside."""
    for inner in held(config):
        if isinstance(inner, Positions):
            yield inner
        yield from positions_in(inner)


def check_streams(streams: int, devices: int) -> None:
    """Refuses devices for parallel streams that there are not.

    Raises:
      UserError: mesh axis `stream` does not divide the streams.
    """
    if streams == 1 < devices or streams % devices:
        raise UserError(
            f"mesh axis stream={devices} does not divide the model's streams, {streams}: "
            f"change --config.model.streams, or the mesh"
        )
