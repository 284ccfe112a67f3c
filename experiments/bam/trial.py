"""The recipe: a seed model, one specialist a domain, mixtures of them all, each trained on."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gam_jax.layers import MLP, Attention, Block, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Params, count_params, path_name
from gam_jax.training.folder import write_atomically
from gam_jax.training.progress import Progress
from gam_jax.training.step import TrainState, make_eval_step, make_train_step, state_shardings
from gam_jax.upcycle import upcycle
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh

SEED = "seed"
MIXTURES = {
    "btx": ("btx", False),
    "bam": ("bam", False),
    "bam_shared": ("bam_shared", False),
    "bam_compute": ("bam", True),
    "bam_shared_compute": ("bam_shared", True),
}
"""Stage -> its recipe, and whether it is trained as many operations as "btx", not tokens."""

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
      scored: validation tokens of each domain at most.
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
    scored: int = 32_768

    @property
    def model(self) -> LanguageModel:
        """The dense one, of bytes: attention and a SwiGLU side by side on one norm."""
        block = Block(
            Attention(heads=self.heads, context=self.window),
            MLP(activation="swiglu", hidden=self.hidden, bias=False),
            RMSNorm(),
            form="parallel",
        )
        return LanguageModel(block, self.width, self.depth, 256, norm=RMSNorm())


SCALES = {
    "short": Scale(16, 1, 2, 24, 32, 6, seed_steps=12, own_steps=10, mixed_steps=10, scored=1024),
    "default": Scale(),
    "long": Scale(192, 6, 6, 512, 256, 16, 3000, 2000, 2000, 2e-3, 131_072),
}


def operations(scale: Scale, recipe: str | None, experts: int) -> int:
    """Of a token's products, forward: as the paper's appendix counts them, and the head.

    Attention's scores and sums are of half the window, the mean of what a token sees.
    """
    width, layers = scale.width, scale.depth
    mixing = 2 * scale.window * width
    heads = 8 * width**2 + mixing
    if recipe == "bam":
        heads = experts * heads
    elif recipe == "bam_shared":
        heads = 4 * width**2 + experts * (4 * width**2 + mixing)
    routers = {"bam": 2, "bam_shared": 2, "btx": 1}.get(recipe or "", 0)
    block = heads + 6 * width * scale.hidden + routers * 2 * width * experts
    return layers * block + 2 * width * 256


class Trial:
    """One run of the whole recipe from a random seed; each stage that is done is only read.

    Args:
      scale: sizes.
      seed: of parameters, data order and routers.
      splits: domain -> (training, validation) bytes.
      folder: where stages are kept.
    """

    def __init__(
        self,
        scale: Scale,
        seed: int,
        splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
        folder: pathlib.Path,
    ) -> None:
        self.scale, self.seed, self.splits, self.folder = scale, seed, splits, folder
        texts = {name: zlib.crc32(b"".join(map(bytes, pair))) for name, pair in splits.items()}
        settings = json.dumps({**dataclasses.asdict(scale), "texts": texts}) + "\n"
        path = folder / "settings.json"
        if path.exists() and path.read_text() != settings:
            raise UserError(f"{folder} holds stages of other settings or texts: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, settings)

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.splits)

    def run(self, progress: Progress) -> dict[str, dict[str, Any]]:
        """Stage -> what was found, in the order of training: see `_stage`."""
        scale, model = self.scale, self.scale.model
        found, even = {}, dict.fromkeys(self.domains, 1 / len(self.domains))
        start = model.init_params(jax.random.key(self.seed))
        steps = scale.seed_steps
        rate = scale.learning_rate
        params, found[SEED] = self._stage(SEED, model, start, even, steps, rate, progress)
        sources = [params]
        for domain in self.domains:
            shares = {name: GENERAL * share for name, share in even.items()}
            shares[domain] += 1 - GENERAL
            params, found[domain] = self._stage(
                domain, model, sources[0], shares, scale.own_steps, rate / 2, progress
            )
            sources.append(params)
        count = len(sources)
        for stage, (recipe, equal_compute) in MIXTURES.items():
            key = jax.random.fold_in(jax.random.key(self.seed), 1)
            mixture, start = upcycle(model, sources, recipe, key)
            steps = scale.mixed_steps
            if equal_compute:
                share = operations(scale, "btx", count) / operations(scale, recipe, count)
                steps = max(2, round(steps * share))
            _, found[stage] = self._stage(stage, mixture, start, even, steps, rate / 2, progress)
        return found

    def _stage(
        self,
        stage: str,
        model: LanguageModel,
        start: Params,
        shares: Mapping[str, float],
        steps: int,
        rate: float,
        progress: Progress,
    ) -> tuple[Params, dict[str, Any]]:
        """Trains from `start` on rows of each domain by its share; or reads what was.

        Returns:
          Parameters, and "losses" (domain -> nats a byte), "steps", "parameters", "active".
        """
        arrays, figures = (self.folder / f"{stage}.{kind}" for kind in ("safetensors", "json"))
        ends = stage in MIXTURES  # nothing starts from a mixture, so its parameters are not kept
        if figures.exists() and (ends or arrays.exists()):
            return start if ends else _read(start, arrays), json.loads(figures.read_text())
        progress.say(f"{stage}: {steps:,} steps")
        optimizer, train_step = _training(model, steps, rate)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=jax.tree.map(jnp.array, start),  # a copy: the step uses up what it is given
            opt_state=optimizer.init(start),
            key=jax.random.key(self.seed),
        )
        state = jax.device_put(state, state_shardings(model, optimizer, Layout(make_mesh())))
        with progress.training(0, steps):
            for step, batch in enumerate(self._batches(stage, shares, steps), start=1):
                state, values = train_step(state, batch)
                if step % 10 == 0:
                    progress.step(step, float(values["loss"]))
        table = model.table()
        found = {
            "losses": self._losses(model, state.params),
            "steps": steps,
            "parameters": count_params(table),
            "active": count_params(table, chosen=1),
        }
        if not ends:
            _write(state.params, arrays)
        write_atomically(figures, json.dumps(found) + "\n")
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in found["losses"].items())
        progress.say(f"{stage}: {shown}")
        return state.params, found

    def _batches(
        self, stage: str, shares: Mapping[str, float], steps: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Windows at random places; mixtures all see the same ones."""
        order = "mixture" if stage in MIXTURES else stage
        random = np.random.default_rng([self.seed, zlib.crc32(order.encode())])
        names, weights = list(shares), list(shares.values())
        window = self.scale.window
        for _ in range(steps):
            rows = []
            for domain in random.choice(names, self.scale.rows, p=weights):
                text = self.splits[domain][0]
                first = random.integers(len(text) - window)
                rows.append(text[first : first + window + 1])
            yield _batch(np.stack(rows))

    def _losses(self, model: LanguageModel, params: Params) -> dict[str, float]:
        """Domain -> mean loss on windows of its validation text, side by side."""
        window, rows = self.scale.window, self.scale.rows
        evaluate = _evaluation(model)
        found = {}
        for domain, (_, text) in self.splits.items():
            whole = min(len(text) - 1, self.scale.scored) // (window * rows)
            starts = window * np.arange(whole * rows).reshape(whole, rows, 1)
            places = starts + np.arange(window + 1)
            losses = [float(evaluate(params, _batch(text[own]))[0]) for own in places]
            found[domain] = float(np.mean(losses))
        return found


# Compiled once for all stages that are alike.
@functools.cache
def _training(model: LanguageModel, steps: int, rate: float) -> tuple[Any, Any]:
    config = OptimizerConfig(rate, warmup=max(1, steps // 10))
    optimizer = make_optimizer(config, steps, model.table())
    return optimizer, make_train_step(model, optimizer, Layout(make_mesh()))


@functools.cache
def _evaluation(model: LanguageModel) -> Any:
    return make_eval_step(model, Layout(make_mesh()))


def _batch(rows: np.ndarray) -> dict[str, np.ndarray]:
    rows = rows.astype(np.int32)
    weights = np.ones(rows[:, 1:].shape, np.float32)
    return {"inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": weights}


def _write(params: Params, path: pathlib.Path) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file({path_name(p): np.asarray(x) for p, x in leaves}, partial)
    partial.replace(path)


def _read(like: Params, path: pathlib.Path) -> Params:
    arrays = safetensors.numpy.load_file(path)
    return jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(arrays[path_name(p)]), like)
