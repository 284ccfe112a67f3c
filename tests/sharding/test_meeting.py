"""Processes of a job meet by plain sockets, and what keeps them from it is said in one line."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import socket
import threading
import time

import pytest

from sharding.errors import UserError, one_line
from sharding.meeting import Address, address_of, meet


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8476", ("localhost", 8476)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("job-0.job:65535", ("job-0.job", 65535)),
        ("[::1]:8476", ("::1", 8476)),
        ("[fe80::1%eth0]:8476", ("fe80::1%eth0", 8476)),
    ],
)
def test_an_address_is_a_host_and_a_port(text, address):
    assert address_of(text, "WHERE") == address


@pytest.mark.parametrize(
    "text",
    [
        "localhost",
        "localhost:",
        ":8476",
        "localhost:0",
        "localhost:65536",
        "localhost:70000",
        "localhost:-1",
        "localhost:http",
        "localhost:8476x",
        "localhost:99999999999",
        "::1:8476",
        "[::1]",
        "[::1]:",
        "[localhost]8476",
        "http://host:80",
        "host/path:80",
        "localhost:²",
        "",
        " ",
        "local host:8476",
        " localhost:8476",
        "localhost: 8476",
        "localhost:8476\n",
    ],
)
def test_what_is_no_address_is_shown(text):
    with pytest.raises(
        UserError, match=re.escape(one_line(f"WHERE='{text}': write it as host:port"))
    ):
        address_of(text, "WHERE")


@pytest.fixture
def address():
    """A port that nobody listens at."""
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    return Address("localhost", port)


def ends(address, *guests, seconds=10.0):
    """How each of the processes ends, (rank, count) of each: None, or what it says."""

    def one(guest):
        try:
            meet(address, *guest, seconds)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(guests)) as pool:
        return list(pool.map(one, guests))


def test_all_go_on_when_all_are_here_and_the_port_is_free_again(address):
    assert ends(address, (2, 3), (0, 3), (1, 3)) == [None] * 3
    assert ends(address, (0, 2), (1, 2)) == [None] * 2


def test_everybody_says_who_is_missing(address):
    start = time.monotonic()
    said = ends(address, (0, 4), (2, 4), seconds=0.5)
    assert said[0] == said[1]
    assert said[0].startswith("processes 1, 3 have not come within 0.5 s: check that all 4")
    (alone,) = ends(address, (0, 2), seconds=0.2)
    assert alone.startswith("process 1 has not come")
    (many,) = ends(address, (0, 1000), seconds=0.2)
    assert "processes 1, 2, 3, 4, 5, 6, 7, 8 and 991 more have" in many
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("guests", "words"),
    [
        (((0, 3), (1, 3), (1, 3)), "two processes say that they are number 1"),
        (((0, 2), (0, 3)), "cannot listen at port"),
        (((0, 2), (1, 3)), "process 1 says that there are 3 processes, process 0 that there are 2"),
    ],
)
def test_processes_that_do_not_agree_say_so(guests, words, address):
    assert any(words in (said or "") for said in ends(address, *guests, seconds=1.0))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_a_port_that_is_taken_is_named_by_both_sides(family):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as other:
        address = Address(host, other.getsockname()[1])
        with pytest.raises(UserError, match=f"cannot listen at port {address.port} \\(another"):
            meet(address, 0, 2, 0.2)

        def hang_up():
            with contextlib.suppress(OSError):
                other.accept()[0].close()

        stranger = threading.Thread(target=hang_up)
        stranger.start()
        with pytest.raises(UserError, match="what listens there is not process 0 of this job"):
            meet(address, 1, 2, 0.0)
        stranger.join()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, "b\u00fc..x"])
def test_a_host_that_there_is_not_is_named(host, address):
    for rank in range(2):
        with pytest.raises(UserError, match=r"does not answer at .*: check that"):
            meet(Address(host, address.port), rank, 2, 0.0)


def test_strangers_and_those_who_leave_again_do_not_count(address):
    """A scanner, garbage, and a process that was started again in its place."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(ends, address, (0, 2))
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b"gam_jax process 1 of 2\n"):
            with connected(address) as guest:
                guest.sendall(said)
        assert not first.done()
        assert ends(address, (1, 2)) == [None]
        assert first.result() == [None]


def connected(address):
    """A connection to process 0, which may not listen yet."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
