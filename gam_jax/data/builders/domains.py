"""`domain:NAME`: three unlike kinds of text that are on every machine with this package.

"python": modules of the standard library. "english": the language's own reference manual, as
`help()` shows it. "c": headers of NumPy and jaxlib. Each is of 600 kilobytes at most, and whole
documents are held out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gam_jax.data.builders.built import own_builder
from gam_jax.data.builders.files import decode, held_out, read_bytes
from sharding.errors import UserError

LIMIT = 600_000
"""Bytes of a domain at most."""


@dataclasses.dataclass
class DomainConfig(tfds.core.BuilderConfig):
    """Which domain, the share of its documents that is held out, and the documents."""

    domain: str = "python"
    validation_fraction: float = 0.1
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


class Domain(tfds.core.GeneratorBasedBuilder):
    """The documents of a domain; make one with `domain_builder`."""

    name = "domain"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "path": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text of one domain that comes with Python and this package.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config: Any = self.builder_config or DomainConfig(name="default")
        texts = config.texts or documents(config.domain)
        held = held_out(list(texts), config.validation_fraction)
        return {
            "train": self._generate_examples({n: t for n, t in texts.items() if n not in held}),
            "validation": self._generate_examples({n: t for n, t in texts.items() if n in held}),
        }

    def _generate_examples(self, texts: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (name, text) in enumerate(texts.items()):
            yield key, {"text": text, "path": name}


def domain_builder(domain: str, data_dir: Path, validation_fraction: float) -> tuple[Domain, int]:
    """The builder for a domain as it is now, and the bytes it will write.

    Args:
      domain: of `DOMAINS`.
      data_dir: where data sets are kept.
      validation_fraction: the share of the documents that is held out.

    Raises:
      UserError: this Python installation has no text of the domain.
    """
    texts = documents(domain)
    if len(texts) < 2:
        raise UserError(
            f"domain:{domain}: this Python installation has no text of it; read your own with "
            f"text:PATH"
        )
    digest = hashlib.sha256(json.dumps([validation_fraction, texts]).encode()).hexdigest()[:16]
    config = DomainConfig(
        name=f"{domain}-{digest}",
        domain=domain,
        validation_fraction=validation_fraction,
        texts=texts,
    )
    return own_builder(Domain, data_dir, config), sum(len(t.encode()) for t in texts.values())


def documents(domain: str) -> dict[str, str]:
    """Name -> text of each document of a domain, in the order of the names."""
    return DOMAINS[domain]()


def _python() -> dict[str, str]:
    folder = Path(sysconfig.get_path("stdlib"))
    return _limited({path.name: path for path in sorted(folder.glob("*.py"))})


def _english() -> dict[str, str]:
    from pydoc_data import topics

    return dict(sorted(topics.topics.items()))


def _c() -> dict[str, str]:
    import jaxlib
    import numpy as np

    found = {}
    for package in (np, jaxlib):
        root = Path(str(package.__file__)).parent
        found |= {f"{root.name}/{p.relative_to(root)}": p for p in sorted(root.rglob("*.h"))}
    return _limited(found)


def _limited(paths: Mapping[str, Path]) -> dict[str, str]:
    """Files in the order of their names, up to the limit together; one that is too long is not."""
    room, texts = LIMIT, {}
    for name, path in paths.items():
        data = read_bytes(path)
        if 0 < len(data) <= room:
            room -= len(data)
            texts[name] = decode(data, path, 0, "replace")
    return texts


DOMAINS = {"python": _python, "english": _english, "c": _c}
