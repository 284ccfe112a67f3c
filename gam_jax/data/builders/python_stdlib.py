"""`python_stdlib`: the source of the running interpreter's standard library, tests left out.

A corpus that every machine with Python has: about ten megabytes of text, no download. A
document is a file. The split is by file, through a hash of its path within the library.
"""

from __future__ import annotations

import dataclasses
import io
import platform
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gam_jax.data.builders.built import own_builder
from gam_jax.data.builders.files import content_digest, decode, held_out, read_bytes
from gam_jax.data.builders.sources import digest_and_size
from gam_jax.data.builders.walk import source_of

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
"""Folders that are not the library: its tests, and what the user installed."""


@dataclasses.dataclass
class PythonStdlibConfig(tfds.core.BuilderConfig):
    """Which library ('' is the running interpreter's), the share of files held out, digests."""

    root: str = ""
    validation_fraction: float = 0.1
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """The .py files of a standard library; make one with `python_stdlib_builder`."""

    name = "python_stdlib"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "path": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source files of the Python standard library, without its tests.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://docs.python.org/3/library/",
            license="Python Software Foundation License Version 2",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config: Any = self.builder_config or PythonStdlibConfig(name="default")
        names = list(config.sha256) or source_files(library_folder(config.root))
        validation = held_out(names, config.validation_fraction)
        return {
            "train": self._generate_examples(config, [n for n in names if n not in validation]),
            "validation": self._generate_examples(config, sorted(validation)),
        }

    def _generate_examples(
        self, config: PythonStdlibConfig, names: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        root = library_folder(config.root)
        for name in names:
            if text := read_source(root / name, config.sha256.get(name, "")):
                yield name, {"text": text, "path": name}


def python_stdlib_builder(
    data_dir: Path, validation_fraction: float, root: str = ""
) -> tuple[PythonStdlib, int]:
    """The builder for the standard library as it is now, and the bytes it will write.

    Its configuration is named by the interpreter's version and a digest of the files, so that
    another interpreter, or a library that was patched, gets a data set of its own.

    Args:
      data_dir: where data sets are kept.
      validation_fraction: the share of the files that is held out.
      root: the folder of the library; '' is the running interpreter's.
    """
    folder = library_folder(root)
    files = [source_of(name, folder / name) for name in source_files(folder)]
    found = {file.name: digest_and_size(file) for file in files}
    digests = {name: sha256 for name, (sha256, _) in found.items()}
    digest = content_digest(list(digests.items()), validation_fraction)
    config = PythonStdlibConfig(
        name=f"{platform.python_version()}-{digest}",
        root=root,
        validation_fraction=validation_fraction,
        sha256=digests,
    )
    return own_builder(PythonStdlib, data_dir, config), sum(size for _, size in found.values())


def library_folder(root: str) -> Path:
    """The folder given, or that of the running interpreter's standard library."""
    return Path(root or sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[str]:
    """The sorted relative names of the .py files below a folder, without tests."""
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(path.as_posix() for path in found if LEFT_OUT.isdisjoint(path.parts))


def read_source(path: Path, sha256: str = "") -> str:
    """A Python file's text, in the encoding that it declares.

    Args:
      path: the file.
      sha256: of the bytes that it must have; not asked if empty.

    Raises:
      UserError: it cannot be read, or has other bytes.
    """
    data = read_bytes(path, sha256)
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return decode(data, path, 0, "strict") if encoding == "utf-8" else data.decode(encoding)
