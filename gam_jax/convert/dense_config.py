"""config.json of dense transformers as a model, and back: what tells one class from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gam_jax.convert import patterns
from gam_jax.convert.attentions import CAPS, Attentions
from gam_jax.convert.family import Config, check_plain, one
from gam_jax.convert.fields import LAYERS, Fields
from gam_jax.convert.multipliers import Multipliers, written_multipliers
from gam_jax.convert.parts import NORMS
from gam_jax.convert.same import check_same
from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models.language import LanguageModel


@dataclasses.dataclass(frozen=True)
class Dense(Attentions):
    """What tells a class of dense transformers from the others.

    Attributes:
      eps, tied: what is meant where config.json does not tell.
      mlp_bias: whether mlp_bias may say that the feed-forward has biases.
      norms: our names of a block's norms -> theirs.
      form: of `Block.norms`.
      act: the field that names the activation, and what it may name.
      rooted: whether the embedding is multiplied by sqrt(D).
      activation: that of `MLP`.
      fused: projections that are stored as one array: "qkv_proj", "gate_up_proj".
      multiplied: whether there are Granite's constants.
    """

    eps: float = 1e-6
    tied: bool = False
    mlp_bias: bool = False
    norms: Mapping[str, str] = dataclasses.field(default_factory=lambda: NORMS)
    form: str = "pre"
    act: tuple[str, ...] = ("hidden_act", "silu")
    rooted: bool = False
    activation: str = "swiglu"
    fused: tuple[str, ...] = ()
    multiplied: bool = False

    def read(self, values: Config) -> LanguageModel:
        """The model of a config.json; a UserError where this project cannot express it."""
        config = Fields.of(values)
        config.only(*self.act)
        width, layers = config.size("hidden_size"), config.size("num_hidden_layers", most=LAYERS)
        norm = RMSNorm(eps=config.number("rms_norm_eps", self.eps, least=0), centred=self.centred)
        ffn = MLP(
            activation=self.activation,
            hidden=config.size("intermediate_size"),
            bias=config.flag("mlp_bias", False) if self.mlp_bias else False,
        )
        attentions = self.attentions(config, width, layers, norm.eps)
        times = Multipliers(embedding=width**0.5 if self.rooted else 1.0)
        if self.multiplied:
            times = Multipliers.of(config)
            attentions = [dataclasses.replace(x, scale=times.attention) for x in attentions]
        blocks = [
            Block(attention, ffn, norm, norms=self.form, residual_scale=times.residual)
            for attention in attentions
        ]
        return LanguageModel(
            **patterns.in_order(blocks),
            width=width,
            vocab=config.size("vocab_size"),
            norm=norm,
            tied=config.flag("tie_word_embeddings", self.tied),
            embedding_scale=times.embedding,
            logit_scale=times.logits,
            logit_cap=self.cap(config, CAPS[1]),
        )

    def write(self, model: LanguageModel) -> dict[str, Any]:
        """The inverse of `read`; a UserError where transformers cannot express the model."""
        check_plain(model, self.official, scaled=True, capped=True)  # see check_same
        blocks = [one(block, Block, self.official) for block in patterns.blocks_of(model)]
        attentions = [one(block.mixer, Attention, self.official) for block in blocks]
        ffn, norm = one(blocks[0].ffn, MLP, self.official), one(model.norm, RMSNorm, self.official)
        config: dict[str, Any] = {
            "architectures": [self.official],
            "model_type": self.kind,
            "hidden_size": model.width,
            "intermediate_size": ffn.hidden or ffn.expansion * model.width,
            "num_hidden_layers": len(blocks),
            "vocab_size": model.vocab,
            "rms_norm_eps": norm.eps,
            "tie_word_embeddings": model.tied,
            self.act[0]: self.act[1],
            **self.written(attentions),
        }
        if self.multiplied:
            config |= written_multipliers(model, attentions[0], blocks[0].residual_scale)
        if self.mlp_bias:
            config["mlp_bias"] = ffn.bias
        if CAPS[1] in self.caps:
            config[CAPS[1]] = model.logit_cap or None
        check_same(self.official, self.read, model, config)
        return config
