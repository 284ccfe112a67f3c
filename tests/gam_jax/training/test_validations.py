"""When a run is validated: at its own period, once soon, and at its end."""

import pytest

from gam_jax.training import fit
from gam_jax.training.metrics import read_metrics
from gam_jax.training.progress import Progress
from tests.gam_jax.training import line


@pytest.mark.parametrize(
    ("first", "steps"), [(0, [4, 8, 9]), (2, [2, 4, 8, 9]), (4, [4, 8, 9]), (30, [4, 8, 9])]
)
def test_a_run_is_validated_once_soon_besides(first, steps, tmp_path):
    experiment = line.experiment(9, validate_every=4, validate_first=first)
    run = fit(experiment, line.data(), run=tmp_path / "run", progress=Progress(visible=False))
    rows = read_metrics(run.folder.metrics)
    assert [row["step"] for row in rows if row["split"] == "validation"] == steps
