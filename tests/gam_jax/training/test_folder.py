"""What a run folder says of the run in it."""

import dataclasses
import json

import pytest

from gam_jax.config import to_dict
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from sharding.errors import UserError

EXPERIMENT = Experiment(LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=16))


def test_a_run_from_before_a_field_existed_is_the_same_with_its_default(tmp_path):
    saved = to_dict(EXPERIMENT)
    del saved["model"]["tied"], saved["model"]["block"]["form"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    folder = RunFolder(tmp_path)
    folder.check_same(EXPERIMENT)
    untied = dataclasses.replace(EXPERIMENT.model, tied=False)
    with pytest.raises(UserError, match=r"model.tied: True -> False"):
        folder.check_same(dataclasses.replace(EXPERIMENT, model=untied))
