"""One real server, of one small run, that all tests of HTTP ask."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import httpx
import jax
import pytest

from experiments.serve.app import State
from experiments.serve.engines import Options, all_served
from experiments.serve.models import open_run
from experiments.serve.server import listen, serve
from gam_jax.serve.engine import Engine
from gam_jax.serve.seating import Settings
from sharding.layout import Layout
from sharding.mesh import make_mesh

COMPILED = "/jax/core/compile/backend_compile_duration"
KEY = "a key"
NAME = "small"


@dataclasses.dataclass(frozen=True)
class Running:
    """A server in a thread.

    Attributes:
      url: where it listens.
      state: its own.
    """

    url: str
    state: State

    @property
    def engine(self) -> Engine:
        """Of its model."""
        engine = self.state.served[NAME].engine
        assert isinstance(engine, Engine)
        return engine

    def client(self, **options) -> httpx.Client:
        """A client with the key."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def post(self, path="/v1/completions", **body) -> httpx.Response:
        """What is answered to a body."""
        with self.client() as client:
            return client.post(path, json=body)


@contextlib.contextmanager
def started(
    runs: Sequence[str], options: Options, template: str = "", code: int = 0
) -> Iterator[Running]:
    """A server of runs while it is asked, and the code with which it ends."""
    opened = [open_run(run, "latest", template) for run in runs]
    layouts = [Layout(make_mesh()).whole] * len(opened)
    state, bound = State(KEY), listen("127.0.0.1", 0)
    codes: list[int] = []

    def run() -> None:
        codes.append(serve(state, bound, lambda: all_served(opened, layouts, options), 10))

    thread = threading.Thread(target=run)
    thread.start()
    while state.status == "compiling" and thread.is_alive():
        thread.join(0.05)
    yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", state)
    state.draining = True
    thread.join(60)
    assert codes == [code]


compiled: list[str] = []
"""An entry for each program that this process has compiled or read from its cache."""
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kw: compiled.append(event) if event == COMPILED else None
)


@pytest.fixture(scope="session")
def template_file(tmp_path_factory):
    """A chat template that says who speaks."""
    path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return str(path)


@pytest.fixture(scope="session")
def server(trained, template_file):
    """The server: four rows, texts are guessed ahead, states remembered."""
    options = Options(4, 0, 4, "ngram", Settings(prefill_budget=256, queue=400))
    with started([f"{NAME}={trained.path}"], options, template_file) as running:
        yield running
