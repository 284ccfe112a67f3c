"""Model folders of Hugging Face are served as they were published."""

from __future__ import annotations

import json
import threading

import jax
import numpy as np
import pytest

from experiments.serve.asked import CHAT, TEXT, asked_chat, asked_text
from experiments.serve.body import Body
from experiments.serve.engines import Options, served_of
from experiments.serve.models import open_folder
from experiments.serve.refusal import Refused
from gam_jax import decode
from gam_jax.convert import from_hf
from gam_jax.serve.request import End
from gam_jax.serve.seating import Settings
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.model_folder import model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def llama(folder):
    """The folder, served by two rows."""
    settings = Settings(prefill_budget=256, snapshots=0)
    opened = open_folder(f"letters={folder}", "")
    options = Options(2, 0, 1, None, settings, limit=opened.model.limit // 2)
    served = served_of(opened, Layout(make_mesh()).whole, options)
    yield served
    served.engine.stop(0)


def answers(served, asked):
    """The text of each answer, and how it ended."""
    texts, ends, done = {}, {}, threading.Semaphore(0)

    def tell(number, event):
        texts[number] = texts.get(number, "") + event.text
        if isinstance(event, End):
            ends[number] = event.reason
            done.release()

    requests = served.requests(asked, served.prompts(asked), tell)
    for request in requests:
        served.engine.submit(request)
    for _ in requests:
        assert done.acquire(timeout=60)
    return [texts[number] for number in range(len(requests))], ends


def test_a_folder_s_greedy_text_is_that_of_generate(folder, llama):
    body = {"prompt": ["abc", "a cab"], "max_tokens": 12, "temperature": 0}
    found, _ = answers(llama, asked_text(Body(json.dumps(body).encode(), TEXT)))
    model, params = from_hf(folder)
    for prompt, text in zip(body["prompt"], found, strict=True):
        ids = llama.tokenizer.encode(prompt)[None]
        key = jax.random.key(0)
        pieces = decode.generate(model, params, ids, 12, key, stop=llama.ends, temperature=0)
        [written] = decode.written(pieces)
        written = written[~np.isin(written, llama.ends)]
        assert text == llama.tokenizer.decode(written)


def test_texts_have_the_limit_that_is_asked_for_and_none_beyond_the_model_s(folder, llama, command):
    own = open_folder(str(folder), "").model.limit
    assert llama.limit == own // 2
    result = command("serve.__main__", f"--hf={folder}", f"--limit={own + 1}")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"--limit={own + 1}: " in result.err
    assert f"takes texts of {own} tokens" in result.err


def test_names_of_special_tokens_in_a_prompt_are_those_tokens(llama):
    """As transformers reads them, whether the folder has a token before every text or not."""
    asked = asked_text(Body(b'{"prompt": "a<|im_end|>"}', TEXT))
    [ids] = llama.prompts(asked)
    assert len(ids) == 2
    assert ids[-1] in llama.ends


def test_a_conversation_goes_by_the_folder_s_template(llama):
    body = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3}
    asked = asked_chat(Body(json.dumps(body).encode(), CHAT))
    [ids] = llama.prompts(asked)
    assert llama.tokenizer.shown(ids) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    [request] = llama.requests(asked, [ids], lambda number, event: None)
    assert request.continuation.ends == frozenset(llama.ends)
    spells = {"messages": [{"role": "user", "content": "a<|im_end|>"}]}
    with pytest.raises(Refused, match="which the chat template alone may write"):
        llama.prompts(asked_chat(Body(json.dumps(spells).encode(), CHAT)))


def test_both_numbers_of_a_text_that_is_too_long_are_told(llama):
    long = {"prompt": "a" * (llama.limit - 4), "max_tokens": 5}
    asked = asked_text(Body(json.dumps(long).encode(), TEXT))
    with pytest.raises(Refused) as refused:
        llama.requests(asked, llama.prompts(asked), lambda number, event: None)
    assert refused.value.code == "context_length_exceeded"
    assert str(llama.limit - 4) in refused.value.message
    assert str(llama.limit) in refused.value.message
