"""Run folders as training leaves them, with losses that a test can foresee."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import pytest

from gam_jax.data.text import Text
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder

BASELINES = {"unigram": 3.0, "bigram": 2.0, "gzip": 1.0}
STEPS = 100


def figures(loss: float) -> dict[str, float]:
    """As a validation writes them, for one byte a token."""
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2)}


@dataclasses.dataclass(frozen=True)
class Runs:
    """A folder that runs are put into."""

    path: pathlib.Path

    def add(
        self,
        name: str,
        /,
        loss: float | None = 1.5,
        *,
        speed: float = 1000.0,
        width: int = 16,
        kernel: int = 3,
        steps: int = STEPS,
        done: int = STEPS,
        **data: Any,
    ) -> RunFolder:
        """A run of 100 steps of 256 tokens that has come to `loss`, validated each 20 steps."""
        model = LanguageModel(Block(GAM(slots=8, kernel=kernel)), width=width, depth=2, vocab=256)
        folder = RunFolder(self.path / name)
        config = Text(window=32, **data)
        train, optimizer = TrainConfig(steps, batch=8), OptimizerConfig(warmup=10)
        files = {"tokenizer.json": ByteTokenizer().to_text()}
        folder.start(Experiment(model, config, train, optimizer), files)
        lines: list[dict[str, Any]] = []
        for step in range(10, done + 1, 10):
            above = math.exp(-step / 20)
            # The first lap holds nothing but the step that compiles: no speed is known of it.
            known = speed if step > 10 else 0.0
            told = {"tokens_per_second": known, "process_peak_bytes": width << 20}
            lines.append({"step": step, "split": "train", "loss": 5 * above + (loss or 1), **told})
            if loss is not None and step % 20 == 0:
                falling = loss + 3 * (above - math.exp(-done / 20))
                lines.append({"step": step, "split": "validation", **figures(falling)})
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder.baselines.write_text(json.dumps({k: figures(v) for k, v in BASELINES.items()}))
        return folder


@pytest.fixture
def runs(tmp_path) -> Runs:
    """No run yet."""
    (tmp_path / "runs").mkdir()
    return Runs(tmp_path / "runs")
