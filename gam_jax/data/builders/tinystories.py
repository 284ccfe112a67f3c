"""`tinystories`: short stories in the words of a small child, one document a story.

Source: the two text files of https://huggingface.co/datasets/roneneldan/TinyStories, whose
stories are parted by `<|endoftext|>`. TensorFlow Datasets has no checksums for them, so none are
checked. Records are shuffled by a hash of the story's number.

Reference: Eldan and Li 2023, "TinyStories: How Small Can Language Models Be and Still Speak
Coherent English?", arXiv:2305.07759.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

SOURCE = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
FILES = {"train": "TinyStories-train.txt", "validation": "TinyStories-valid.txt"}
END = "<|endoftext|>"


class TinyStories(tfds.core.GeneratorBasedBuilder):
    """TinyStories, with the splits of its authors."""

    name = "tinystories"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Short stories written by GPT-3.5 and GPT-4 with a small vocabulary.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://huggingface.co/datasets/roneneldan/TinyStories",
            license="CDLA-Sharing-1.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        paths = dl_manager.download({split: f"{SOURCE}/{name}" for split, name in FILES.items()})
        return {split: self._generate_examples(paths[split]) for split in FILES}

    def _generate_examples(self, path: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        with epath.Path(path).open("rb") as file:
            lines = (line.decode("utf-8", "replace") for line in file)
            for key, story in enumerate(stories(lines)):
                yield key, {"text": story}


def stories(lines: Iterable[str]) -> Iterator[str]:
    """The stories in lines of text, without the mark between them and the space around it."""
    story: list[str] = []
    for line in lines:
        head, *rest = line.split(END)
        story.append(head)
        for start in rest:
            if text := "".join(story).strip():
                yield text
            story = [start]
    if text := "".join(story).strip():
        yield text
