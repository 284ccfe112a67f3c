"""Do experts stay in balance, and what does it cost? The same run without, with loss, with bias.

Source: "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts" (arXiv 2408.15664).
The run is that of `experiments/configs/moe_small.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.configs import moe_small
from experiments.load_figure import draw_load
from experiments.study import Arm, Claim, Measure, Published, Setting, Study
from experiments.study.declare import CPU, SHORT
from gam_jax.ops.routing import Router, max_violation
from gam_jax.training import Experiment
from gam_jax.training.expert_load import SPLIT
from gam_jax.training.folder import RunFolder
from gam_jax.training.metrics import read_metrics

ROUTERS = {
    "none": Router(balance=0.0, z=0.0),
    "loss": Router(balance=0.01, z=0.0),
    "bias": Router(balance=0.0, z=0.0, bias_step=1e-3),
}
"""No balancing; the loss of Switch at its coefficient; the bias of DeepSeek-V3 at its step."""
TITLES = {"none": "no balancing", "loss": "balance loss", "bias": "bias, loss-free"}
STEPS = {SHORT: 20, CPU: 400}
LAST = 0.9
"""Of the steps: loads are of those after."""


def experiment(router: Router, setting: Setting) -> Experiment:
    """The small mixture of experts with another router; smaller still at the short scale."""
    base, steps = moe_small.experiment(), setting.steps or STEPS[setting.scale]
    block: Any = base.model.block  # type: ignore[attr-defined]
    block = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, router=router))
    size = {"depth": 2, "unroll": 1} if setting.scale == SHORT else {}
    parts = {
        "model": dataclasses.replace(base.model, block=block, **size),  # type: ignore[call-arg]
        "train": dataclasses.replace(
            base.train, steps=steps, validate_every=steps, log_every=max(1, steps // 100)
        ),
        "optimizer": dataclasses.replace(base.optimizer, warmup=min(100, steps // 10)),
        "checkpoint": dataclasses.replace(base.checkpoint, keep=1),
    }
    return dataclasses.replace(base, **parts)


def loads(run: RunFolder, experiment: Experiment) -> dict[str, float]:
    """The balance of a finished run, whose load.png it draws."""
    rows = read_metrics(run.metrics)
    draw_load(rows, run.load)
    return violations(rows)


def violations(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """MaxVio of the last tenth of the steps: means over blocks, and over batches or of their sum.

    Of the worst block too, and the smallest load of any expert, in even shares.

    Args:
      rows: the lines of metrics.jsonl.
    """
    found = [row for row in rows if row["split"] == SPLIT]
    last = [row for row in found if row["step"] > LAST * found[-1]["step"]]
    loads = np.array([row["load"] for row in last])  # [steps, L, E]
    together = loads.mean(axis=0)
    return {
        "of_batches": float(np.mean(max_violation(loads))),
        "together": float(np.mean(max_violation(together))),
        "worst_block": float(np.max(max_violation(together))),
        "least_load": float(together.min() * together.shape[-1]),
    }


STUDY = Study(
    name="balance",
    title="Balance of experts",
    source="arXiv 2408.15664",
    page="architectures/moe.md",
    arms={
        name: Arm(
            TITLES[name],
            experiment=lambda setting, router=router: experiment(router, setting),
            also=loads,
        )
        for name, router in ROUTERS.items()
    },
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "of_batches": Measure("MaxVio of a batch", "lower", form=".2f"),
        "together": Measure("MaxVio", "lower", form=".2f"),
        "worst_block": Measure("MaxVio of the worst block", "lower", form=".2f"),
        "least_load": Measure("least load", "higher", form=".2f"),
    },
    published=(
        Published("loss", "together", 0.72, "1 B parameters"),
        Published("bias", "together", 0.04, "1 B parameters"),
    ),
    claims=(
        Claim(
            "The bias balances better than the loss",
            "lower",
            ("bias", "loss"),
            "together",
            source="arXiv 2408.15664, 1 B parameters",
        ),
        Claim(
            "The bias has a lower loss than the balance loss",
            "lower",
            ("bias", "loss"),
            "loss",
            source="arXiv 2408.15664, 1 B parameters",
        ),
        Claim(
            "The bias balances, then the loss, then nothing",
            "ordered",
            ("bias", "loss", "none"),
            "of_batches",
            source="ours",
        ),
        Claim(
            "With a bias no expert has less than three quarters of an even share",
            "at_least",
            ("bias",),
            "least_load",
            0.75,
            source="ours",
        ),
        Claim(
            "With a balance loss no expert has less than three quarters of an even share",
            "at_least",
            ("loss",),
            "least_load",
            0.75,
            source="ours",
        ),
    ),
    notes=(
        "MaxVio = (max - mean) / mean of the experts' loads, of the last tenth of the steps: mean "
        "over blocks, of each batch or of all of them together; least load in even shares",
    ),
)
