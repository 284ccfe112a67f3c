"""Bad input ends a command with code 2 and one line that names what is wrong and the nearest right.

Nothing is left behind: a run that did not start has no folder.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from gam_jax.data.bpe import train_bpe
from gam_jax.data.text import Text
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from sharding.checkpoint import manifest

MODEL = LanguageModel(Block(GAM(slots=8)), width=16, depth=1, vocab=256, context=32)


@pytest.fixture
def place(workshop, tmp_path, monkeypatch):
    """A folder with good and bad files and a run of one step, as the folder where we are."""
    (tmp_path / "good.txt").write_text((workshop.path / "corpus.txt").read_text())
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("two lines\nno more\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 40)
    (tmp_path / "config.txt").write_text("no Python\n")
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "raising.py").write_text("def get_config():\n    return 1 / 0\n")
    (tmp_path / "refused.py").write_text("def get_config():\n    return int('one')\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a few words")
    experiment = Experiment(MODEL, Text(name="text:good.txt", dir="data", window=32))
    files = {"tokenizer.json": ByteTokenizer().to_text()}
    RunFolder(tmp_path / "untrained").start(experiment, files)
    for name, content in (("no_tokenizer", "{}"), ("garbled", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    saved = (tmp_path / "untrained" / "config.json").read_text()
    (tmp_path / "no_tokenizer" / "config.json").write_text(saved)
    for name in ("untrained", "no_tokenizer"):
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*args, data="good.txt"):
    """A command line for a new run on a text of `place`."""
    common = ("--run=new", "--config.data.dir=data", f"--config.data.name=text:{data}")
    return ("train", *common, "--config.data.window=32", *args)


def resume(*args):
    """A command line that continues the untrained run."""
    return ("train", "--run=untrained", "--resume", *args)


BAD = {
    "unknown field": (train("--config.model.depht=3"), ["model.depht", "'depth'"]),
    "unknown field of a layer": (
        train("--config.model.block.mixer.slot=3"),
        ["mixer.slot", "'slots'"],
    ),
    "ill-typed field": (train("--config.model.depth=many"), ["depth", "many"]),
    "ill-typed field that is inherited": (
        train("--config.model.block.mixer.width=wide"),
        ["block.mixer.width", "expected int", "'wide'"],
    ),
    "ill-typed choice": (train("--config.model.init=loud"), ["model", "init", "loud", "sound"]),
    "a trace of no steps": (train("--profile=3"), ["--profile=3", "STEP:COUNT"]),
    "a trace beyond the end": (
        train("--profile=5:9", "--config.train.steps=10", "--config.optimizer.warmup=2"),
        ["--profile=5:9", "ends at step 10"],
    ),
    "no steps": (train("--config.train.steps=0"), ["train.steps=0", "at least 1"]),
    "unequal parts": (
        train("--config.train.batch=6", "--config.train.accumulate=4"),
        ["train.batch=6", "train.accumulate=4"],
    ),
    "warm-up too long": (
        train("--config.train.steps=10", "--config.optimizer.warmup=10"),
        ["optimizer.warmup=10", "train.steps=10"],
    ),
    "unknown data set": (
        ("train", "--run=new", "--config.data.name=wikitex2"),
        ["unknown data set 'wikitex2'", "wikitext2"],
    ),
    "missing text": (train(data="nowhere.txt"), ["text:nowhere.txt does not exist"]),
    "empty text": (train(data="empty.txt"), ["text:empty.txt holds no text"]),
    "text shorter than a window": (
        train("--config.data.window=500", data="short.txt"),
        ["tokens long", "one window needs 501"],
    ),
    "text of another encoding": (
        train(data="latin.txt"),
        ["latin.txt is not UTF-8", "0xe9", "offset 3"],
    ),
    "vocabulary smaller than the tokenizer": (
        train("--config.model.vocab=200"),
        ["model.vocab=200", "tokenizer has 256"],
    ),
    "window beyond the positions": (
        train("--config.model.context=16"),
        ["data.window=32", "16 learned positions", "model.context"],
    ),
    "missing config file": (("train", "--run=new", "--config=nowhere.py"), ["nowhere.py"]),
    "config file that is not Python": (("train", "--run=new", "--config=config.txt"), ["config"]),
    "broken config file": (("train", "--run=new", "--config=broken.py"), ["broken.py"]),
    "raising config file": (("train", "--run=new", "--config=raising.py"), ["division by zero"]),
    "refused config file": (("train", "--run=new", "--config=refused.py"), ["'one'"]),
    "unknown group of fields": (train("--config.modl.depth=3"), ["modl"]),
    "unknown flag": (train("--resum"), ["resum"]),
    "unexpected argument": (train("more"), ["'more'"]),
    "folder that holds a run": (
        ("train", "--run=untrained"),
        ["untrained already holds a run", "--resume", "--run"],
    ),
    "folder that is something else": (("train", "--run=words"), ["words", "not a run"]),
    "run that is a file": (("train", "--run=good.txt"), ["good.txt", "not a run"]),
    "resume of another model": (
        resume("--config.model.width=24"),
        ["untrained holds a different run", "model.width: 16 -> 24"],
    ),
    "resume without a tokenizer": (
        ("train", "--run=no_tokenizer", "--resume"),
        ["no_tokenizer has no readable tokenizer.json"],
    ),
    "resume of a garbled config": (
        ("train", "--run=garbled", "--resume"),
        ["config.json is not JSON"],
    ),
    "evaluation without a run": (("evaluate", "--run=words"), ["words holds no run"]),
    "evaluation of nothing": (("evaluate", "--run=nowhere"), ["nowhere holds no run"]),
    "evaluation before a checkpoint": (
        ("evaluate", "--run=untrained"),
        ["untrained has no checkpoints", "--resume"],
    ),
    "evaluation beyond the positions": (
        ("evaluate", "--run=untrained", "--window=40"),
        ["--window=40", "32 learned positions"],
    ),
    "evaluation with gaps": (
        ("evaluate", "--run=untrained", "--window=8", "--stride=9"),
        ["--stride=9", "at most 8"],
    ),
    "unknown split": (("evaluate", "--run=untrained", "--split=tests"), ["split", "tests"]),
    "sample without a run": (("sample", "--run=words"), ["words holds no run"]),
    "sample beyond the positions": (
        ("sample", "--run=untrained", "--prompt=abc", "--tokens=30"),
        ["33 tokens", "32 learned positions"],
    ),
    "sample of no prompt": (("sample", "--run=untrained", "--prompt="), ["--prompt"]),
    "mesh of an unknown axis": (train("--mesh=dta=2"), ["--mesh=dta=2", "'data'"]),
    "mesh of too many devices": (train("--mesh=data=16"), ["16 devices", "there are 8"]),
    "evaluation on a mesh of too many": (
        ("evaluate", "--run=untrained", "--mesh=seq=9"),
        ["9 devices"],
    ),
    "sample on a mesh that is none": (
        ("sample", "--run=untrained", "--tokens=2", "--mesh=two"),
        ["'two'"],
    ),
    "other emulated devices": (train("--emulate=3"), ["cannot emulate 3 devices"]),
    "preset that is none": (
        train("--config.parallel.preset=fuly_sharded"),
        ["parallel", "'fully_sharded'"],
    ),
    "axis without work": (
        train("--mesh=tensor=2", "--config.parallel.preset=data"),
        ["tensor=2", "+tensor"],
    ),
    "batch that the mesh does not divide": (
        train("--mesh=data=8", "--config.train.batch=12"),
        ["12 rows", "data=8", "train.batch"],
    ),
    "parts of a batch that the mesh does not divide": (
        train("--mesh=data=8", "--config.train.accumulate=2"),
        ["4 rows", "data=8", "train.accumulate"],
    ),
    "tokens that the mesh does not divide": (
        train("--mesh=seq=5"),
        ["32 tokens", "seq=5", "data.window"],
    ),
    "width that the mesh does not divide": (
        train("--mesh=tensor=8", "--config.model.width=36"),
        ["blocks/mixer/conv", "'channel' = 36", "tensor=8"],
    ),
    "slots that the mesh does not divide": (
        train("--mesh=tensor=8", "--config.model.block.mixer.slots=12"),
        ["blocks/mixer/memory", "'slot' = 12", "tensor=8"],
    ),
    "degrees that do not nest": (
        train("--mesh=data=2x4", "--config.parallel.shards=weights:4,gradients:2"),
        ["parallel.shards", "weights:4 does not nest in gradients:2"],
    ),
    "degrees that are no levels": (
        train("--mesh=data=8", "--config.parallel.shards=weights:2,state:8"),
        ["weights:2 is no group of mesh axis data=8", "levels"],
    ),
    "a level that the batch does not divide": (
        train("--mesh=data=2x2", "--config.train.batch=6"),
        ["6 rows", "train.batch"],
    ),
    "bits of what is not sent": (
        train("--mesh=data=8", "--config.parallel.bits=gradients:4"),
        ["parallel.bits=gradients:4", "no gradients are scattered"],
    ),
    "arithmetic that is none": (
        train("--config.model.dtype=int8"),
        ["dtype 'int8'", "float32, bfloat16, float16"],
    ),
    "more than its type can count": (
        ("train", "--config=moe_small", *train("--config.model.streams=2147483647")[1:]),
        ["out of bounds for int32"],
    ),
    "rate below 0": (
        train("--config.optimizer.learning_rate=-1.0"),
        ["optimizer.learning_rate=-1.0", "must not be negative"],
    ),
    "rate that is no number": (
        train("--config.optimizer.learning_rate=nan"),
        ["optimizer.learning_rate=nan", "finite"],
    ),
    "warm-up below 0": (train("--config.optimizer.warmup=-1"), ["optimizer.warmup=-1"]),
    "decay below 0": (train("--config.optimizer.weight_decay=-0.1"), ["weight_decay=-0.1"]),
    "average that forgets nothing": (
        train("--config.optimizer.beta2=1.0"),
        ["optimizer.beta2=1.0", "from 0 to below 1"],
    ),
    "no block in a turn": (train("--config.model.unroll=0"), ["unroll=0", "at least 1"]),
    "dropout of all": (train("--config.model.dropout=1.0"), ["dropout=1.0", "below 1"]),
    "seed below 0": (train("--config.train.seed=-1"), ["train.seed=-1", "not be negative"]),
    "sample of a temperature that is no number": (
        ("sample", "--run=untrained", "--temperature=nan"),
        ["--temperature=nan", "finite"],
    ),
    "sample of an infinite temperature": (
        ("sample", "--run=untrained", "--temperature=inf"),
        ["--temperature=inf", "finite"],
    ),
    "sample of a share that is no number": (
        ("sample", "--run=untrained", "--top_p=nan"),
        ["--top_p=nan", "finite"],
    ),
    "sample of a seed that is too large": (
        ("sample", "--run=untrained", "--seed=4294967296"),
        ["seed", "4294967296"],
    ),
    "sample of a negative temperature": (
        ("sample", "--run=untrained", "--temperature=-1"),
        ["temperature", "-1"],
    ),
}


def assert_one_line(result, *words):
    """Code 2, nothing on stdout, and one line on stderr with all the words."""
    assert result.code == 2
    assert result.out == ""
    progress = ("on ", "reading ", "32,064 parameters", "mesh data=")
    lines = [line for line in result.err.splitlines() if not line.startswith(progress)]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD.keys())
def test_it_ends_with_one_line_that_says_what_and_where(line, words, place, command):
    assert_one_line(command(*line), *words)
    assert not (place / "new").exists()


def test_a_run_that_is_refused_stays_as_it_was(place, command):
    before = (place / "untrained" / "config.json").read_text()
    assert_one_line(command(*resume("--config.model.width=24")))
    assert (place / "untrained" / "config.json").read_text() == before


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_a_checkpoint_that_is_not_there_is_named_beside_those_that_are(name, trained, command):
    result = command(name, f"--run={trained.path}", "--checkpoint=7")
    assert_one_line(result, "no checkpoint '7'", "latest, best, or one of [80, 120]")


def test_a_text_that_has_changed_is_not_trained_on_further(trained, place, command):
    shutil.copytree(trained.path, place / "copy")
    config = place / "copy" / "config.json"
    saved = json.loads(config.read_text())
    saved["data"] |= {"name": "text:good.txt", "dir": "data"}
    config.write_text(json.dumps(saved))
    with (place / "good.txt").open("a") as file:
        file.write("one more line\n")
    words = ["the text of 'text:good.txt' has changed since checkpoint 120"]
    assert_one_line(command("train", "--run=copy", "--resume"), *words)


@pytest.fixture
def swapped(trained, place):
    """The trained run with a tokenizer of another's ids."""
    shutil.copytree(trained.path, place / "swapped")
    other = train_bpe(["another text"], 270, "byte_level")
    (place / "swapped" / "tokenizer.json").write_text(other.to_text())
    return place / "swapped"


@pytest.mark.parametrize(
    "line",
    [
        ("train", "--run=swapped", "--resume"),
        ("evaluate", "--run=swapped"),
        ("evaluate", "--run=swapped", "--data=text:good.txt"),
        ("sample", "--run=swapped", "--prompt=the"),
        ("convert", "--run=swapped", "--to-hf=out"),
    ],
    ids=" ".join,
)
def test_a_tokenizer_that_was_swapped_is_refused(line, swapped, place, command):
    if "--resume" in line:
        words = ["the tokenizer has 270", "use the tokenizer that the model was made for"]
    else:
        words = ["tokenizer.json", "has changed", "bring the old one back"]
    assert_one_line(command(*line), *words)
    assert not (place / "out").exists()


@pytest.mark.parametrize("line", [("train", "--resume"), ("evaluate",)], ids=" ".join)
def test_a_run_of_a_text_that_is_split_otherwise_now_says_so(line, trained, place, command):
    """A run of several files, by a version that knew no `data.field`."""
    shutil.copytree(trained.path, place / "old")
    for path in (place / "old" / "checkpoints").iterdir():
        saved = manifest.read(path)
        config = {**saved.extra["config"], "data": dict(saved.extra["config"]["data"])}
        del config["data"]["field"]
        extra = {**saved.extra, "config": config, "corpus": "0" * 16}
        manifest.write(path, dataclasses.replace(saved, extra=extra))
    name, *more = line
    result = command(name, "--run=old", *more)
    assert_one_line(result, "the split of 'text:", "has changed", "--init")
    assert command("sample", "--run=old", "--prompt=the", "--tokens=1").code == 0
    assert command("evaluate", "--run=old", "--data=text:good.txt", "--tokens=32").code == 0


def test_a_command_in_a_process_of_its_own_fails_alike(place, workshop):
    result = workshop.run("train", f"--run={place / 'new'}", "--config.model.depht=3")
    assert_one_line(result, "model.depht", "'depth'")
    assert not (place / "new").exists()
