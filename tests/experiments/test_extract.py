"""A run of mixed layers ends as an ordinary run of the plain model that it chose."""

from __future__ import annotations

import json

import pytest

from gam_jax.bilevel import Bilevel
from gam_jax.config import to_dict
from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block, Mixed, Pattern
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import Experiment, TrainConfig
from gam_jax.training.folder import RunFolder

MIXER = Mixed((GAM(slots=8), GAM(variant="local")), "one")
FFN = Mixed((MLP(hidden=16), MLP(hidden=32)), "two", share=2)
CONFIG = """
import json, pathlib
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(pathlib.Path("{path}").read_text()))
"""


@pytest.mark.slow
def test_the_chosen_model_scores_as_the_mixed_one_and_trains_on(command, workshop, tmp_path):
    text = Text(name=f"text:{workshop.path / 'corpus.txt'}", tokenizer="bytes", window=16)
    train = TrainConfig(
        steps=8,
        batch=8,
        accumulate=2,
        bilevel=Bilevel(1.0, warmup=2, keep_others=True),
        validate_every=8,
        validation_tokens=1024,
    )
    model = LanguageModel(Block(MIXER, FFN), width=16, depth=3)
    one = Experiment(model, text, train, OptimizerConfig(warmup=1))
    (tmp_path / "values.json").write_text(json.dumps(to_dict(one)))
    (tmp_path / "own.py").write_text(CONFIG.format(path=tmp_path / "values.json"))
    mixed, plain = tmp_path / "mixed", tmp_path / "plain"
    result = command("train", f"--config={tmp_path / 'own.py'}", f"--run={mixed}", "--mesh=data=2")
    assert result.code == 0, result.err
    result = command("extract", f"--run={mixed}", f"--out={plain}", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["options"].keys() == {"blocks/mixer", "blocks/ffn"}
    assert facts["parameters"][1] < facts["parameters"][0]
    found = RunFolder(plain).experiment()
    assert found.train.bilevel == Bilevel()
    unlike = len({*map(tuple, zip(*facts["options"].values(), strict=True))}) > 1
    assert isinstance(found.model.block, Pattern) == unlike
    scores = []
    for path, mesh in ((mixed, "data=1"), (plain, "data=2,tensor=2")):
        words = (f"--run={path}", "--tokens=1024", f"--mesh={mesh}", "--json")
        result = command("evaluate", *words)
        assert result.code == 0, result.err
        scores.append(json.loads(result.out)["loss"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    words = (
        "--resume",
        "--mesh=data=4",
        "--config.train.steps=10",
        "--change=train.steps",
        "--json",
    )
    result = command("train", f"--run={plain}", *words)
    assert result.code == 0, result.err
    result = command("extract", f"--run={tmp_path / 'none'}", f"--out={tmp_path / 'b'}")
    assert result.code == 2
