"""Images along several routes (MHS): scikit-learn's 8 x 8 digits, beside a linear model.

Source: "MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba" (arXiv 2406.05992).
"""

from __future__ import annotations

from experiments.study import Arm, Claim, Measure, Setting, Study
from gam_jax.data import Digits
from gam_jax.layers import GAM, GRU, MHS, MLP, Bidirectional, Block, Layer
from gam_jax.models import ImageClassifier
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig
from sharding.checkpoint import CheckpointConfig

PATCH = 2
ROWS = 4
"""Patches of a side."""
MIXERS: dict[str, tuple[str, Layer]] = {
    "mhs": ("MHS, four routes", MHS(rows=ROWS, patterns="CXSZ", state=4)),
    "raster": ("MHS, one raster", MHS(rows=ROWS, patterns="Z", state=4)),
    "gru": ("GRU, both directions", Bidirectional(GRU())),
    "gam": ("GAM", GAM(slots=32, kernel=4, dilation=ROWS)),
}
STEPS = {"short": 20, "cpu": 300}


def experiment(mixer: Layer, setting: Setting) -> Experiment:
    """Two blocks of width 32 on 4 x 4 patches, 64 images an update."""
    steps = STEPS[setting.scale]
    return Experiment(
        model=ImageClassifier(Block(mixer, MLP(expansion=2)), width=32, depth=2, patch=PATCH),
        data=Digits(),
        train=TrainConfig(steps=steps, batch=64, validate_every=steps, log_every=10),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            warmup=max(1, steps // 10),
            final=0.0,
            beta2=0.999,
            weight_decay=0.05,
        ),
        checkpoint=CheckpointConfig(every=steps, keep=1),
    )


STUDY = Study(
    name="digits",
    title="Images along several routes",
    source="arXiv 2406.05992",
    page="architectures/images.md",
    arms={
        name: Arm(title, experiment=lambda setting, mixer=mixer: experiment(mixer, setting))
        for name, (title, mixer) in MIXERS.items()
    },
    measures={
        "accuracy": Measure("accuracy", "higher"),
        "loss": Measure("validation loss", "lower", "nats"),
        "parameters": Measure("parameters", form=",.0f"),
        "speed": Measure("speed", "higher", "images/s", ",.0f"),
    },
    claims=(
        Claim(
            "Four scanning routes classify better than one raster",
            "higher",
            ("mhs", "raster"),
            "accuracy",
            source="the paper's idea, its task is segmentation",
        ),
        Claim(
            "Four routes beat logistic regression on the pixels (0.967)",
            "at_least",
            ("mhs",),
            "accuracy",
            0.967,
            source="ours",
        ),
    ),
    notes=("(linear) is logistic regression on the pixels",),
)
