"""What is no plain file is never written over, whatever writes and however it is reached."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from gam_jax.data.storage import written_whole
from gam_jax.training.metrics import MetricsWriter
from sharding.checkpoint.portable import export
from sharding.errors import UserError
from sharding.whole_file import check_place, replacing, write_atomically, write_named


def _device(path):
    path.symlink_to("/dev/full")  # a node of our own would need a privilege


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # its whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def _folder(path):
    path.mkdir()


def _linked(make):
    def link(path):
        make(path.with_name("behind"))
        path.symlink_to("behind")

    return link


PLACES = {
    "device": (_device, "a device"),
    "pipe": (_pipe, "a pipe"),
    "socket": (_socket, "a socket"),
    "folder": (_folder, "a folder"),
    "link to a pipe": (_linked(_pipe), "a pipe"),
    "link to a socket": (_linked(_socket), "a socket"),
    "link to a folder": (_linked(_folder), "a folder"),
}


def _cache(path):
    with written_whole(path) as temporary:
        temporary.write_text("new")


def _binary(path):
    with replacing(path) as file:
        file.write(b"new")


WRITERS = {
    "check_place": check_place,
    "replacing": _binary,
    "write_atomically": lambda path: write_atomically(path, "new"),
    "write_named": lambda path: write_named(path, "new"),
    "cache": _cache,
    "metrics": lambda path: MetricsWriter(path).__exit__(),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("make", "kind"), PLACES.values(), ids=PLACES)
def test_it_is_refused_and_stays(writer, make, kind, tmp_path):
    path = tmp_path / "place"
    make(path)
    before = path.lstat(), path.stat()
    with pytest.raises(UserError, match=f"place is {kind}, not a file"):
        writer(path)
    after = path.lstat(), path.stat()
    assert [(s.st_ino, stat.S_IFMT(s.st_mode)) for s in before] == [
        (s.st_ino, stat.S_IFMT(s.st_mode)) for s in after
    ]


@pytest.mark.parametrize("make", [_pipe, _folder, _device])
def test_nor_is_one_that_has_the_name_of_the_file_meanwhile(make, tmp_path):
    make(tmp_path / "report.html.partial")
    with pytest.raises(UserError, match=r"report\.html\.partial is a"):
        write_named(tmp_path / "report.html", "new")


def test_a_new_name_and_a_plain_file_are_written_whole(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, "één")
    write_atomically(path, "twee\u2028")
    assert path.read_bytes() == "twee\u2028".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_what_cannot_be_written_is_one_line_that_says_how_to_name_another(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*: name another with --out"):
        write_named(tmp_path / "no" / "a", "new", "--out")


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as file:
        file.write(b"new" * (1 // 0))
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


COMMANDS = {
    "report": lambda run, link: ("report.__main__", run, f"--out={link}"),
    "page": lambda run, link: ("benchmark.__main__", "page", "nowhere.json", link),
    "all": lambda run, link: ("benchmark.__main__", "all", link),
    "claims": lambda run, link: ("study.__main__", "claims", f"--page={link}"),
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_commands_refuse_a_device_in_one_line(line, trained, tmp_path, command):
    _device(tmp_path / "device")
    result = command(*line(str(trained.path), str(tmp_path / "device")))
    assert result.code == 2
    assert "device is a device, not a file" in result.err
    assert len(result.err.splitlines()) == 1
    assert (tmp_path / "device").is_symlink()


def test_a_checkpoint_is_not_exported_onto_a_device(trained, tmp_path):
    _device(tmp_path / "device")
    with pytest.raises(UserError, match=r"--to=.*device is a device"):
        export(str(trained.path), tmp_path / "device")
