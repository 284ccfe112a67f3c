"""What /metrics tells, in the form of Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gam_jax.serve.request import Engine

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
GAUGES = {
    "queued": "Requests that wait for a row.",
    "rows": "Rows in use.",
    "pages": "Pages of growing caches in use.",
    "loaded": "Whether the model is on the devices.",
}
RATIOS = {
    "acceptance": "The part of the judged guesses that stood.",
    "tokens_a_pass": "Tokens that a step of a row with guesses has given.",
    "ideal_tokens_a_pass": "(1 - a^(g + 1)) / (1 - a), of this acceptance a and g guesses a step.",
}
"""Gauges that there are only once guesses were judged."""
COUNTERS = {
    "read": "Tokens of prompts that were fed.",
    "cached": "Tokens of prompts that were not fed, since their state was remembered.",
    "written": "Tokens that were given out.",
    "wasted": "Steps of a row whose token was cut off.",
    "guessed": "Guesses of a draft that were fed.",
    "accepted": "Guesses that stood.",
    "fell": "Guesses that did not; those after one that fell were not judged.",
    "passes": "Steps of a row that drew.",
    "guessed_passes": "Of these, those with guesses.",
    "guessed_written": "Tokens that these gave.",
    "hits": "Requests that found the model on the devices, or on its way there.",
    "misses": "Times that the model had to be brought there.",
    "loading_seconds": "Seconds that this took.",
}


@dataclasses.dataclass(frozen=True)
class Times:
    """Histograms of seconds.

    Attributes:
      first: from a request to its first token.
      between: from one token to the next.
    """

    first: Histogram
    between: Histogram


class Metrics:
    """Counts of all engines, and times.

    Args:
      engines: by the name of their model.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Counts(engines))
        names = ("gam_time_to_first_token", "gam_time_between_tokens")
        told = ("Seconds from a request to its first token.", "Seconds between two tokens.")
        self.times = Times(
            *(
                Histogram(f"{name}_seconds", text, buckets=SECONDS, registry=self._registry)
                for name, text in zip(names, told, strict=True)
            )
        )

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _Counts(Collector):
    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        counts = {name: engine.counts() for name, engine in self._engines.items()}
        for kind, names in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, text in names.items():
                family = kind(f"gam_{name}", text, labels=["model"])
                for model, own in counts.items():
                    family.add_metric([model], getattr(own, name))
                yield family
        for name, text in RATIOS.items():
            family = GaugeMetricFamily(f"gam_{name}", text, labels=["model"])
            for model, own in counts.items():
                if own.accepted + own.fell:
                    family.add_metric([model], getattr(own, name))
            yield family
        ended = CounterMetricFamily("gam_requests", "Ended, by reason.", labels=["model", "reason"])
        for model, own in counts.items():
            for reason, number in own.requests:
                ended.add_metric([model, reason], number)
        yield ended
