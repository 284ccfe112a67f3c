"""Questions about texts are answered as the laws of probability and of writing ask for."""

from __future__ import annotations

import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments.text_scorer import Begins, TextScorer, begins_of, told
from experiments.writer import TextRun, Writer
from gam_jax.training.folder import load_params
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def scorer(trained):
    """The run of bytes, which may be given 24 of them."""
    run = TextRun.open(str(trained.path))
    layout = Layout(make_mesh(devices=jax.devices()[:1])).whole
    step, params = load_params(run.folder, run.experiment, layout)
    return TextScorer(Writer(run, run.model, params, layout, step), begins_of(run, None), 24, 4)


def test_the_probability_of_a_text_is_the_product_of_its_parts(scorer):
    parts = [("the cat", " sees a dog"), ("the cat", " sees"), ("the cat sees", " a dog")]
    whole, first, second = scorer.loglikelihood(parts)
    assert whole.log == pytest.approx(first.log + second.log, rel=1e-4)
    assert whole.greedy == (first.greedy and second.greedy)


def test_blanks_at_the_end_of_a_context_are_scored(scorer):
    pairs = [("the ", "cat"), ("the", " cat"), ("the", " "), ("the ", "dog")]
    with_blank, without, blank, _ = scorer.loglikelihood(pairs)
    assert with_blank == without
    assert without.log < blank.log


def test_a_text_that_fits_one_window_is_as_likely_as_after_nothing(scorer):
    texts = ["the cat sees a dog.", "one", "a bird hears the fish under the one mouse."]
    found = scorer.rolling([*texts, ""])
    alone = [one.log for one in scorer.loglikelihood([("", text) for text in texts[:2]])]
    assert found[:2] == pytest.approx(alone, rel=1e-4)
    longer = TextScorer(scorer.writer, scorer.begins, 64, 4).rolling(texts)
    assert found[:2] == pytest.approx(longer[:2], rel=1e-4)
    assert found[2] != pytest.approx(longer[2], rel=1e-4)
    assert found[3] == 0


def test_contexts_are_continued_greedily_as_a_sample_is(scorer, trained, command, capsys):
    """Many at once, with settings of their own, up to a stop; too long a context is cut."""
    asked = [
        ("the c", {"until": ["."], "max_gen_toks": 12}),
        ("xyz the c", {"until": [], "max_new_tokens": 19, "do_sample": False, "temperature": 0.7}),
        ("one", {"until": "e", "max_gen_toks": 12}),
    ]
    found = scorer.generate(asked)
    assert "1 contexts do not fit 24 tokens" in capsys.readouterr().err
    args = (f"--run={trained.path}", "--temperature=0", "--json")
    for prompt, words, text in zip(
        ("the c", "the c", "one"),
        (("--tokens=12", "--stop=."), ("--tokens=19",), ("--tokens=12", "--stop=e")),
        found,
        strict=True,
    ):
        result = command("sample", *args, f"--prompt={prompt}", *words)
        assert json.loads(result.out)["text"] == prompt + text


def test_sampling_is_the_same_each_time_and_no_row_another(scorer):
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    first, again = (scorer.generate([("the c", settings)] * 3) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3


def test_a_token_that_begins_texts_stands_once(scorer):
    always = TextScorer(scorer.writer, Begins(0, True), 24, 4)
    assert always.encode("ab").tolist() == always.encode("\0ab").tolist() == [0, 97, 98]
    assert scorer.encode("ab").tolist() == [97, 98]
    context, asked = always.pair("a ", "b")
    assert (context.tolist(), asked.tolist()) == ([0, 97], [32, 98])
    context, asked = always.pair("", "b")
    assert (context.tolist(), asked.tolist()) == ([0], [98])
    np.testing.assert_array_equal(always.pair("", "\0b").context, [0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 4}, "num_beams=4 is not known here"),
        ({"max_gen_toks": 24}, "24 tokens to write leave no room for a context in 24"),
        ({"max_gen_toks": 1.5}, "max_gen_toks must be a whole number"),
        ({"max_gen_toks": 4, "do_sample": True, "top_p": 2.0}, "top_p must be from 0 to 1"),
    ],
)
def test_settings_that_are_not_known_are_refused(settings, words, scorer):
    with pytest.raises(UserError, match=words):
        scorer.generate([("a", settings)])


def test_what_is_not_sampled_has_no_temperature():
    given = {"until": "a", "temperature": 0.7, "do_sample": False, "repetition_penalty": 1.2}
    assert told(given) == (["a"], 256, {"repetition_penalty": 1.2, "temperature": 0})
    assert told({"temperature": 0.7, "top_k": 3}) == ([], 256, {"temperature": 0.7, "top_k": 3})


def test_a_continuation_that_cannot_fit_is_refused(scorer):
    with pytest.raises(UserError, match="a continuation of 30 tokens is longer than the 24"):
        scorer.loglikelihood([("a", "b" * 30)])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is there")
def test_tasks_without_lm_eval_say_what_to_install(trained, command):
    result = command("evaluate", f"--run={trained.path}", "--tasks=a.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: --tasks needs lm-eval: pip install 'gam_jax[eval]'\n"


def test_flags_of_texts_are_not_of_tasks(trained, command):
    result = command("evaluate", f"--run={trained.path}", "--tasks=a.yaml", "--stride=3")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--stride is not of --tasks" in result.err
