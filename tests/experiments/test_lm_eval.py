"""Scores of task files are those that lm-eval's own model gives of the same folder.

It needs lm-eval, torch and transformers (extras `eval` and `official`), and is left out where one
is missing.
"""

from __future__ import annotations

import json
import pathlib
import random
import shutil

import pytest

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("transformers")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf_llama"
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = ["the", "cat", "dog", "sees", "likes", "a", "one", "bird"]


def make_tokenizer(begins):
    """Signs and a few merges, 40 ids; with `begins` its file puts <s> before a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    signs = [*" .?!'-", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), (" ", "a")]
    names = [*SPECIAL, *signs, *("".join(pair) for pair in merges)]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "with <s>"])
def folder(request, tmp_path_factory):
    """A model folder as people publish them."""
    path = tmp_path_factory.mktemp("model") / "folder"
    shutil.copytree(GOLDEN, path)
    (path / "expected.npz").unlink()
    make_tokenizer(request.param).save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return path


def sentences(count, words):
    draw = random.Random(count)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.choice(words))) for _ in range(count)]


TASKS = {
    "choices": (
        "output_type: multiple_choice\n"
        "doc_to_text: '{{question}} '\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        [
            {"question": text, "choices": [" the", "a dog", " one bird.", "cat"], "answer": i % 4}
            for i, text in enumerate(sentences(24, (1, 2, 5, 14)))
        ],
    ),
    "texts": (
        "output_type: loglikelihood_rolling\n"
        "doc_to_text: ''\n"
        "doc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
        [{"text": text} for text in sentences(8, (1, 4, 30))],
    ),
    "answers": (
        "output_type: generate_until\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['.', 'ab'], max_gen_toks: 16, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n",
        [{"question": text, "answer": "x"} for text in sentences(8, (1, 3, 20))],
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task files with their data beside them."""
    path = tmp_path_factory.mktemp("tasks")
    for name, (text, records) in TASKS.items():
        data = path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        head = f"task: {name}\ndataset_path: json\n"
        files = f"dataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (path / f"{name}.yaml").write_text(head + files + text)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, workshop):
    """A run that `gam convert` made of the folder, with the folder's files."""
    path = tmp_path_factory.mktemp("runs") / "llama"
    result = workshop.run("convert", f"--from_hf={folder}", f"--run={path}")
    assert result.code == 0, result.err
    (path / "source").mkdir(exist_ok=True)
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder / name, path / "source" / name)
    return path


@pytest.fixture(scope="module")
def hf(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def ours(run):
    import jax

    from experiments.lm_eval_adapter import RunLM
    from experiments.text_scorer import TextScorer, begins_of
    from experiments.writer import TextRun, Writer
    from gam_jax.training.folder import load_params
    from sharding.layout import Layout
    from sharding.mesh import make_mesh

    opened = TextRun.open(str(run))
    layout = Layout(make_mesh(devices=jax.devices()[:1])).whole
    step, params = load_params(opened.folder, opened.experiment, layout)
    writer = Writer(opened, opened.model, params, layout, step)
    return RunLM(TextScorer(writer, begins_of(opened, None), opened.model.limit, 4))


def asked(*args):
    from lm_eval.api.instance import Instance

    kind = "loglikelihood"
    return [Instance(kind, doc={}, arguments=one, idx=i) for i, one in enumerate(args)]


PAIRS = [
    (text, end)
    for text in ["", "the cat ", "a", *sentences(6, (2, 40))]
    for end in [" sees", "cat", "a <s> b", " "]
]


def test_likelihoods_of_pairs(ours, hf):
    """Contexts that are empty, end with blanks, or are too long."""
    found, want = (model.loglikelihood(asked(*PAIRS)) for model in (ours, hf))
    assert [log for log, _ in found] == pytest.approx([log for log, _ in want], rel=1e-4, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]


def test_likelihoods_of_texts_of_many_windows(ours, hf):
    texts = [(text,) for text in sentences(6, (1, 12, 60))]
    found, want = (model.loglikelihood_rolling(asked(*texts)) for model in (ours, hf))
    assert found == pytest.approx(want, rel=1e-5)


def test_what_is_written(ours, hf):
    settings = {"until": ["d", " b"], "max_gen_toks": 20, "do_sample": False}
    given = [(text, settings) for text in sentences(7, (1, 3, 30))]
    given += [(text, {**settings, "repetition_penalty": 1.3}) for text in sentences(3, (1, 30))]
    found, want = (model.generate_until(asked(*given)) for model in (ours, hf))
    assert found == want
    assert any(found)


def test_scores_of_task_files(run, tasks, hf, command):
    from experiments.lm_eval_adapter import open_tasks, scores_of

    result = command("evaluate", f"--run={run}", f"--tasks={tasks}", "--json", "--rows=5")
    assert result.code == 0, result.err
    found = json.loads(result.out)["tasks"]
    want = scores_of(hf, open_tasks(tasks))
    assert found.keys() == want.keys() == TASKS.keys()
    for name, values in want.items():
        assert found[name] == pytest.approx(values, rel=1e-4)


def test_a_file_that_is_no_task_is_refused_in_one_line(run, tmp_path, command):
    (tmp_path / "bad.yaml").write_text("task: bad\noutput_type: what\n")
    for path in (tmp_path, tmp_path / "bad.yaml", tmp_path / "none"):
        result = command("evaluate", f"--run={run}", f"--tasks={path}")
        assert result.code == 2
        assert str(path) in result.err.splitlines()[-1]
