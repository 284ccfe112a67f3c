"""Networks of non-causal convolutions as streams: late by what was said, and otherwise the same."""

from __future__ import annotations

import functools
import random

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gam_jax.layers.convolution import Convolution, Pointwise, Repeat, Transposed, causal
from gam_jax.layers.delayed import Node, Parallel, Sequential, Wait, residual, started, streamed
from gam_jax.params import count_params, init_params
from sharding.errors import UserError
from sharding.mesh import make_mesh

WIDTH = 2
in_chunks = jax.jit(streamed, static_argnums=(0, 3))


def sequence(*nodes: Node) -> Sequential:
    return Sequential(nodes)


def kernels(*strides: int) -> Sequential:
    pairs = zip((3, 5, 7, 9), strides, strict=True)
    return Sequential(tuple(Convolution(kernel=kernel, stride=stride) for kernel, stride in pairs))


def random_graph(draw: random.Random, depth: int = 2, ratio_one: bool = False) -> Node:
    """Plain, dilated, strided, transposed, with any padding; residuals, unequal branches."""

    def plain(stride: int = 1) -> Node:
        kernel, dilation = draw.randint(1, 5), draw.randint(1, 2)
        left = draw.randint(-1, (kernel - 1) * dilation)
        return Convolution(kernel=kernel, dilation=dilation, stride=stride, left=left)

    def up(stride: int) -> Node:
        kernel = stride + draw.randint(0, 4)
        crop = draw.randint(0, kernel - 1)
        return draw.choice((Transposed(0, kernel, stride, crop), Repeat(stride)))

    def branch() -> Node:
        return sequence(plain(), Pointwise("tanh"), plain())

    nodes: list[Node] = [plain()]
    for _ in range(draw.randint(2, 4)):
        kind, stride = draw.randrange(6), draw.choice((2, 3))
        if kind == 0 and not ratio_one:
            nodes.append(plain(stride))
        elif kind == 1 and not ratio_one:
            nodes.append(up(stride))
        elif kind == 2 and not ratio_one:
            nodes.append(Parallel((plain(stride), sequence(plain(), plain(stride))), "sum"))
        elif kind == 3 and depth:
            nodes.append(residual(random_graph(draw, depth - 1, ratio_one=True)))
        elif kind == 4:
            meet = draw.choice(("sum", "mean", "product"))
            nodes.append(Parallel((branch(), plain(), Wait(draw.randint(0, 3))), meet))
        else:
            nodes += [Pointwise("tanh"), plain()]
    return Sequential(tuple(nodes))


@functools.cache
def doubles(network: Node) -> dict:
    """Parameters in float64, biases and all."""
    params = init_params(network.table(WIDTH), jax.random.key(0))  # many share their shapes
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def signal(network: Node, chunks: int, chunk: int) -> tuple[np.ndarray, int]:
    """Noise [2, N, D] behind as many zeros as the network sees; and the first output behind it."""
    multiple = network.multiple
    first = -(-network.field // multiple) * multiple
    first += -first % chunk
    noise = np.random.default_rng(0).normal(size=(2, chunks * chunk, WIDTH))
    x = np.concatenate([np.zeros((2, first, WIDTH)), noise], axis=1)
    return x, int(first * network.ratio)


def assert_law(network: Node, *chunks: int, tolerance: float = 1e-12, dtype=np.float64) -> None:
    late = network.delay()
    params = jax.tree.map(lambda x: x.astype(dtype), doubles(network))
    with jax.enable_x64(dtype == np.float64):
        for chunk in chunks:
            count = 3 + -(-int(late / network.ratio) // chunk)
            x, first = signal(network, count, chunk)
            x = x.astype(dtype)
            offline = np.asarray(jax.jit(network.__call__)(params, x))
            stream = np.asarray(in_chunks(network, params, x, chunk))
            assert stream.shape == offline.shape == (2, x.shape[1] * network.ratio, WIDTH)
            shown = offline.shape[1] - late
            assert shown > first
            scale = max(1.0, float(np.abs(offline).max()))
            error = np.abs(stream[:, late + first :] - offline[:, first:shown]).max() / scale
            assert error < tolerance, (network, chunk, error)


FEW, MANY = 5, 40


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n < FEW else pytest.mark.slow) for n in range(MANY)],
)
def test_a_stream_is_the_whole_some_samples_later(number):
    network = random_graph(random.Random(number))
    assert_law(network, network.multiple * (1 + number % 3))
    if number >= FEW:
        assert_law(network, network.multiple, network.multiple * 4)
        assert_law(network, network.multiple * 2, tolerance=2e-6, dtype=np.float32)


def test_in_float32_too():
    network = random_graph(random.Random(1))
    assert_law(network, network.multiple * 2, tolerance=2e-6, dtype=np.float32)


TRAPS = {
    "unequal strided branches": Parallel(
        (Convolution(kernel=9, stride=2), Convolution(kernel=3, stride=2))
    ),
    "an odd ratio up": Transposed(kernel=6, stride=3, crop=1),
    "strided after an odd delay": sequence(Convolution(kernel=3), Convolution(kernel=4, stride=2)),
    "chunk shorter than what is kept": Convolution(kernel=9, dilation=3),
}
"""What the published library does otherwise than offline."""


@pytest.mark.parametrize("name", TRAPS)
def test_traps_of_the_published_library(name):
    network = TRAPS[name]
    assert_law(network, network.multiple, network.multiple * 3)


@pytest.mark.parametrize(
    ("strides", "late"),
    [
        ((1, 1, 1, 1), (1, 3, 6, 10)),
        ((2, 1, 1, 1), (1, 3, 6, 10)),
        ((1, 2, 1, 1), (1, 2, 5, 9)),
        ((1, 1, 2, 1), (1, 3, 3, 7)),
        ((2, 2, 2, 2), (1, 2, 3, 4)),
    ],
)
def test_delays_are_those_of_the_published_library(strides, late):
    whole = kernels(*strides)
    assert tuple(Sequential(whole.nodes[: n + 1]).delay() for n in range(4)) == late


def rave() -> tuple[Node, Node]:
    """Encoder and decoder of RAVE v1, one head, as its released configuration has them."""
    ratios = (4, 4, 4, 2)
    down = tuple(Convolution(kernel=2 * r + 1, stride=r) for r in ratios)
    encoder = sequence(Convolution(kernel=7), *down, Convolution(kernel=5))
    nodes: list[Node] = [Convolution(kernel=7)]
    for r in ratios:
        nodes.append(Transposed(kernel=2 * r, stride=r, crop=r // 2))
        nodes += [
            residual(Convolution(kernel=3, dilation=d), Convolution(kernel=3)) for d in (1, 3, 5)
        ]
    return encoder, sequence(*nodes, Convolution(kernel=7))


def test_delays_of_rave():
    encoder, decoder = rave()
    assert (encoder.delay(), decoder.delay()) == (4, 988)
    assert sequence(encoder, decoder).delay() == 988 + 128 * 4
    assert sequence(encoder, decoder).multiple == 128


def test_without_zeros_before_it_only_the_start_differs():
    """Kernels 3, 5, 7, 9: ten samples late, and the first nine outputs are others."""
    network = kernels(1, 1, 1, 1)
    params = doubles(network)
    x = np.random.default_rng(1).normal(size=(1, 40, WIDTH))
    with jax.enable_x64(True):
        offline = np.asarray(jax.jit(network.__call__)(params, x))
        stream = np.asarray(in_chunks(network, params, x, 4))[:, network.delay() :]
    apart = np.abs(stream - offline[:, : stream.shape[1]]).max((0, 2)) > 1e-12
    assert apart[:9].all()
    assert not apart[9:].any()


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_over_devices_along_time_it_is_the_stream_of_one(shape):
    """A shard of as many samples as a chunk may have: what nodes keep comes from several others."""
    network = random_graph(random.Random(2))
    data, seq = shape
    chunk = network.multiple * seq
    x, _ = signal(network, 2, chunk)
    params, width = doubles(network), P("data", "seq")
    mesh = make_mesh(data=data, seq=seq)
    with jax.enable_x64(True):
        wanted = np.asarray(in_chunks(network, params, x, chunk))

        def one(params, x, state):
            return network.stream(params, x, state, axis="seq")

        program = jax.jit(
            jax.shard_map(
                one,
                mesh=mesh,
                in_specs=(P(), width, P("data")),
                out_specs=(width, P("data")),
            )
        )
        state, found = started(network, 2, WIDTH, np.float64), []
        for part in np.split(x, x.shape[1] // chunk, axis=1):
            y, state = program(params, part, state)
            found.append(y)
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, atol=1e-12)


def naive(node: Convolution, weight, bias, x):
    """The equation, term by term."""
    found = np.zeros((len(x), x.shape[1] // node.stride, weight.shape[2]))
    width = weight.shape[1]
    share = weight.shape[2] // node.groups
    for m in range(found.shape[1]):
        for j in range(node.kernel):
            n = m * node.stride + j * node.dilation - node.before
            if 0 <= n < x.shape[1]:
                for group in range(node.groups):
                    own = slice(group * share, (group + 1) * share)
                    inputs = x[:, n, group * width : (group + 1) * width]
                    found[:, m, own] += inputs @ weight[j, :, own]
    return found + bias


@pytest.mark.parametrize(
    "node",
    [
        Convolution(4, kernel=4, stride=3, dilation=2, left=1, groups=2),
        Convolution(3, kernel=2, stride=5, normed=True),
    ],
)
def test_a_convolution_is_its_equation(node):
    params = doubles(node)
    x = np.random.default_rng(2).normal(size=(2, 30, WIDTH))
    weight = params["weight"]
    if node.normed:
        weight = params["gain"] * weight / np.sqrt((weight**2).sum((0, 1)))
    with jax.enable_x64(True):
        found = jax.jit(node.__call__)(params, x)
    np.testing.assert_allclose(found, naive(node, weight, params["bias"], x), atol=1e-12)


@pytest.mark.parametrize(
    "node",
    [
        Convolution(4, kernel=3, stride=2, normed=True),
        Transposed(4, kernel=8, stride=4, normed=True),
    ],
)
def test_normed_filters_begin_as_they_are_drawn(node):
    """A gain is the length that its filter has at first, nearly."""
    draw = jax.jit(lambda key: init_params(node.table(128), key))
    params = jax.tree.map(np.asarray, draw(jax.random.key(0)))
    lengths = np.sqrt(np.square(params["weight"]).sum((0, 1)))
    np.testing.assert_allclose(params["gain"], lengths, rtol=0.1)


@pytest.mark.parametrize("crop", [0, 2, 4])
def test_a_transposed_convolution_is_its_equation(crop):
    node = Transposed(3, kernel=5, stride=2, crop=crop)
    params = doubles(node)
    x = np.random.default_rng(3).normal(size=(2, 6, WIDTH))
    whole = np.zeros((2, 30, 3))
    for n in range(6):
        for k in range(5):
            whole[:, n * 2 + k] += x[:, n] @ params["weight"][k]
    with jax.enable_x64(True):
        found = jax.jit(node.__call__)(params, x)
    np.testing.assert_allclose(found, whole[:, crop : crop + 12] + params["bias"], atol=1e-12)


def test_forced_to_be_causal_it_is_never_late_and_something_else():
    network = sequence(
        residual(Convolution(kernel=5), Convolution(kernel=3)), Transposed(0, 4, 2, 1)
    )
    forced = causal(network)
    assert (network.delay(), forced.delay()) == (7, 0)
    assert count_params(forced.table(WIDTH)) == count_params(network.table(WIDTH))
    assert_law(forced, 3)
    x = np.random.default_rng(4).normal(size=(1, 40, WIDTH))
    with jax.enable_x64(True):
        late = np.asarray(jax.jit(forced.__call__)(doubles(network), x))
        whole = np.asarray(jax.jit(network.__call__)(doubles(network), x))
    errors = [np.abs(late[:, 20 + d : 60 + d] - whole[:, 20:60]).max() for d in range(16)]
    assert min(errors) > 0.1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Convolution(kernel=3, left=3), "from 0 to 2"),
        (lambda: Convolution(kernel=3, groups=2).table(3), "groups=2"),
        (lambda: Transposed(kernel=3, crop=3), "crop=3"),
        (lambda: Pointwise("gelu2"), "gelu2"),
        (lambda: Parallel((Convolution(stride=2), Wait())), "1, 1/2 outputs an input"),
        (lambda: Parallel(()), "no outputs"),
        (lambda: Parallel((Wait(),), "max"), "meet='max'"),
        (lambda: Parallel((Convolution(3), Wait())).table(2), "[2, 3] channels"),
        (
            lambda: kernels(2, 1, 2, 1)(doubles(kernels(2, 1, 2, 1)), np.ones((1, 6, 2))),
            "strides, 4",
        ),
        (lambda: streamed(Wait(1), {}, np.ones((1, 6, 2)), 4), "does not divide"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)
