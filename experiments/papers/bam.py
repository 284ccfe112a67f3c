"""BAM: a seed model, one specialist a domain, mixtures made of them all, each trained on.

Source: "BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts"
(arXiv 2408.08274). Rival: Branch-Train-MiX (arXiv 2403.07816).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from experiments.study import Arm, Begins, Claim, Measure, Published, Setting, Study
from experiments.study.declare import Numbers
from gam_jax.data import TextMixture
from gam_jax.data.base import Dataset
from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Params, count_params
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder
from gam_jax.upcycle import mixture_of, upcycle
from sharding.checkpoint import CheckpointConfig

SEED = "seed"
DOMAINS = ("python", "english", "c")
SOURCES = (SEED, *DOMAINS)
MIXTURES = {
    "btx": ("BTX: feed-forward experts", "btx", False),
    "bam": ("BAM, equal tokens", "bam", False),
    "bam_shared": ("BAM shared keys, equal tokens", "bam_shared", False),
    "bam_compute": ("BAM, equal compute", "bam", True),
    "bam_shared_compute": ("BAM shared keys, equal compute", "bam_shared", True),
}
"""Arm -> title, recipe, and whether it is trained as many operations as "btx", not tokens."""

GENERAL = 0.1
"""Share of a specialist's rows that is of all domains: BAM, section 3.1."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the models are and how long they are trained.

    Attributes:
      width, depth, heads, hidden: of the dense models.
      window, rows: tokens and sequences of an update.
      seed_steps, own_steps, mixed_steps: updates of the seed model, of each specialist, and of
        "btx".
      learning_rate: the seed's highest; all that follow have half of it.
      scored: validation tokens of each domain: as many of each, so that the loss of all tokens is
        the mean over domains. The smallest domain holds out 19,219.
    """

    width: int = 96
    depth: int = 3
    heads: int = 4
    hidden: int = 256
    window: int = 128
    rows: int = 16
    seed_steps: int = 400
    own_steps: int = 300
    mixed_steps: int = 300
    learning_rate: float = 4e-3
    scored: int = 16_384

    @property
    def model(self) -> LanguageModel:
        """The dense one, of bytes: attention and a SwiGLU side by side on one norm."""
        return dense(self.width, self.depth, self.heads, self.hidden, self.window, 256)

    def steps(self, arm: str) -> int:
        """Updates of an arm."""
        if arm in SOURCES:
            return self.seed_steps if arm == SEED else self.own_steps
        _, recipe, equal_compute = MIXTURES[arm]
        if not equal_compute:
            return self.mixed_steps
        share = operations(self.model, "btx") / operations(self.model, recipe)
        return max(2, round(self.mixed_steps * share))


SCALES = {
    "short": Scale(16, 1, 2, 24, 32, 6, seed_steps=12, own_steps=10, mixed_steps=10, scored=1024),
    "cpu": Scale(),
    "long": Scale(192, 6, 6, 512, 256, 16, 3000, 2000, 2000, 2e-3),
}


def dense(
    width: int, depth: int, heads: int, hidden: int, window: int, vocab: int, tied: bool = True
) -> LanguageModel:
    """The paper's dense model."""
    mixer = Attention(heads=heads, context=window)
    ffn = MLP(activation="swiglu", hidden=hidden, bias=False)
    block = Block(mixer, ffn, RMSNorm(), form="parallel")
    return LanguageModel(block, width, depth, vocab, norm=RMSNorm(), tied=tied)


PUBLISHED = dense(1024, 6, 8, 2048, 2048, 256_000, tied=False)
"""The paper's of 590 M; its feed-forward width counts gate and up."""


def model_of(base: LanguageModel, recipe: str) -> LanguageModel:
    """The mixture by a recipe; the dense model for an empty one."""
    return mixture_of(base, len(SOURCES), recipe) if recipe else base


def operations(model: LanguageModel, recipe: str) -> int:
    """Of a token's products, forward: as the paper's appendix counts them, and the head.

    Attention's scores and sums are of half the window, the mean of what a token sees.

    Args:
      model: the dense one.
      recipe: of the mixture; empty for the dense model itself.
    """
    block: Any = model.block
    width, experts = model.width, len(SOURCES)
    mixing = 2 * block.mixer.context * width
    heads = 8 * width**2 + mixing
    if recipe == "bam":
        heads = experts * heads
    elif recipe == "bam_shared":
        heads = 4 * width**2 + experts * (4 * width**2 + mixing)
    routers = {"bam": 2, "bam_shared": 2, "btx": 1}.get(recipe, 0)
    each = heads + 6 * width * block.ffn.hidden + routers * 2 * width * experts
    return model.depth * each + 2 * width * (model.vocab or 0)


def shares(arm: str) -> dict[str, float]:
    """Domain -> its share of an arm's rows."""
    even = 1 / len(DOMAINS)
    if arm not in DOMAINS:
        return dict.fromkeys(DOMAINS, even)
    return {name: GENERAL * even + (1 - GENERAL) * (name == arm) for name in DOMAINS}


def experiment(arm: str, setting: Setting) -> Experiment:
    """The training of an arm."""
    scale = SCALES[setting.scale]
    steps = scale.steps(arm)
    rate = scale.learning_rate if arm == SEED else scale.learning_rate / 2
    recipe = MIXTURES[arm][1] if arm in MIXTURES else ""
    texts = ",".join(f"{share:.6g}*domain:{name}" for name, share in shares(arm).items())
    return Experiment(
        model=model_of(scale.model, recipe),
        data=TextMixture(name=f"mix:{texts}", tokenizer="bytes", window=scale.window),
        train=TrainConfig(
            steps=steps, batch=scale.rows, validate_every=steps, validation_tokens=scale.scored
        ),
        optimizer=OptimizerConfig(rate, warmup=max(1, steps // 10)),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


def reordered(by: int, one: Experiment, data: Dataset) -> Experiment:
    """Rows in another order than those of the arms that this one begins from."""
    return dataclasses.replace(one, train=dataclasses.replace(one.train, seed=one.train.seed + by))


def upcycled(
    recipe: str, one: Experiment, sources: Sequence[Experiment], params: Sequence[Params], seed: int
) -> Params:
    """What a mixture begins with; its routers are drawn from the seed of the sources."""
    model: Any = sources[0].model
    key = jax.random.fold_in(jax.random.key(sources[0].train.seed), 1)
    return upcycle(model, params, recipe, key)[1]


def told(recipe: str, run: RunFolder, one: Experiment) -> Numbers:
    """Parameters that a token meets, and operations of the training, of those of "btx"."""
    scale = next(s for s in SCALES.values() if s.model.width == getattr(one.model, "width", None))
    work = one.train.steps * operations(scale.model, recipe)
    base = scale.mixed_steps * operations(scale.model, "btx")
    return {"active": count_params(one.model.table(), chosen=1), "operations": work / base}


def _dense_arm(name: str) -> Arm:
    first = name == SEED
    return Arm(
        "the seed model" if first else f"on {name}",
        experiment=functools.partial(experiment, name),
        begins=None if first else Begins((SEED,)),
        fitted=None if first else functools.partial(reordered, 1000),
        also=functools.partial(told, ""),
    )


def _mixture_arm(name: str) -> Arm:
    title, recipe, _ = MIXTURES[name]
    return Arm(
        title,
        experiment=functools.partial(experiment, name),
        begins=Begins(SOURCES, make=functools.partial(upcycled, recipe)),
        fitted=functools.partial(reordered, 2000),
        also=functools.partial(told, recipe),
    )


def _size_arm(recipe: str) -> Arm:
    """A model of the paper, of which only the parameters are counted."""

    def counts(setting: Setting, seed: int) -> Numbers:
        table = model_of(PUBLISHED, recipe).table()
        return {"parameters": count_params(table), "active": count_params(table, chosen=1)}

    return Arm(f"590 M, {recipe or 'dense'}", numbers=counts, exact=True)


COUNTS = {
    "": (587_209_728, 587_209_728),
    "btx": (700_480_512, 587_234_304),
    "bam": (776_002_560, 662_731_776),
    "bam_shared": (738_253_824, 612_400_128),
}
"""Recipe -> parameters of the paper's model, and those that a token meets, as printed."""

PERPLEXITIES = {
    "btx": 10.72,
    "bam": 9.70,
    "bam_shared": 10.32,
    "bam_compute": 10.00,
    "bam_shared_compute": 10.46,
}
"""Averages over domains, models of 590 M."""

ARMS = {
    **{name: _dense_arm(name) for name in SOURCES},
    **{name: _mixture_arm(name) for name in MIXTURES},
}
SIZES = {f"size_{recipe or 'dense'}": recipe for recipe in COUNTS}


def _claims() -> tuple[Claim, ...]:
    found = []
    for own in DOMAINS:
        for name in DOMAINS:
            text = f"The specialist on {own} {'gains' if name == own else 'loses'} on {name}"
            kind = "lower" if name == own else "higher"
            measure = f"loss/domain:{name}"
            found.append(Claim(text, kind, (own, SEED), measure, source="the paper's premise"))
    for recipe, (total, active) in COUNTS.items():
        arm = (f"size_{recipe or 'dense'}",)
        title = ARMS[recipe].title if recipe else "The dense model"
        for measure, count in (("parameters", total), ("active", active)):
            which = "parameters" if measure == "parameters" else "parameters for a token"
            text = f"{title}: {count:,} {which} at 590 M"
            found.append(Claim(text, "near", arm, measure, count, 0.5, "the paper, appendix A"))
    return tuple(found)


STUDY = Study(
    name="bam",
    title="Trained dense models made into one mixture",
    source="arXiv 2408.08274",
    page="bam.md",
    arms={**ARMS, **{name: _size_arm(recipe) for name, recipe in SIZES.items()}},
    measures={
        "loss": Measure("mean loss", "lower", "nats a byte"),
        **{f"loss/domain:{name}": Measure(name, "lower") for name in DOMAINS},
        "perplexity": Measure("perplexity", "lower", form=".2f"),
        "steps": Measure("steps", form=",.0f"),
        "operations": Measure("operations, of BTX's", form=".2f"),
        "parameters": Measure("parameters", form=",.0f"),
        "active": Measure("active", form=",.0f"),
    },
    published=tuple(
        Published(arm, "perplexity", value, "the averages at 590 M")
        for arm, value in PERPLEXITIES.items()
    ),
    claims=(
        Claim("BAM beats BTX at equal tokens", "lower", ("bam", "btx"), "loss", source="the paper"),
        Claim(
            "At equal tokens shared keys lie between BAM and BTX",
            "ordered",
            ("bam", "bam_shared", "btx"),
            "loss",
            source="the paper",
        ),
        Claim(
            "BAM beats BTX at equal compute",
            "lower",
            ("bam_compute", "btx"),
            "loss",
            source="the paper (equal days; here equal operations)",
        ),
        Claim(
            "BAM with shared keys beats BTX at equal compute",
            "lower",
            ("bam_shared_compute", "btx"),
            "loss",
            source="the paper (equal days; here equal operations)",
        ),
        *_claims(),
    ),
    scales=("short", "cpu", "long"),
    groups={"sizes": tuple(SIZES)},
    notes=("as many tokens of each domain are scored, so the loss is the mean over domains",),
)
