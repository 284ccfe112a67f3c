"""Rules by which guesses are kept so that the text has the law of the model alone.

No switch of a server: those draw the same token with and without a draft, see `drafts`. These are
the published rules, whose law can be enumerated. p is the model's distribution of the next token,
q the draft's, both after temperature and filters.

1. Chain (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023, arXiv
   2302.01318): a guess x drawn from q stands with probability min(1, p(x) / q(x)); the token
   after the first that falls is drawn from norm(max(p - q, 0)), that after all from p.
2. Several guesses for one place (Miao et al. 2023, arXiv 2305.09781, for draws with replacement):
   as 1, one after the other, with p replaced by norm(max(p - q, 0)) after each that falls, and,
   where guesses are drawn without replacement, q by what is left of it without that token.
3. Certain guesses, not drawn: x stands with probability p(x), else p loses x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of the guesses for one place.

    Attributes:
      chances: of each guess, the probability that it stands if those before it fell.
      rest: [N], the distribution of the token if all fall.
    """

    chances: tuple[float, ...]
    rest: Float[np.ndarray, N]

    def law(self, guesses: Sequence[int]) -> Float[np.ndarray, N]:
        """The distribution of the token that is written, given the guesses."""
        found, left = np.zeros_like(self.rest), 1.0
        for guess, chance in zip(guesses, self.chances, strict=True):
            found[guess] += left * chance
            left *= 1 - chance
        return found + left * self.rest


def left_over(p: Float[np.ndarray, N], q: Float[np.ndarray, N]) -> Float[np.ndarray, N]:
    """norm(max(p - q, 0)); p itself where nothing is left, since then no guess falls."""
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.any() else p


def judge_drawn(
    p: Float[np.ndarray, N],
    q: Float[np.ndarray, N],
    guesses: Sequence[int],
    replaced: bool = True,
) -> Verdict:
    """Guesses for one place that were drawn from q, in the order in which they were drawn.

    Args:
      p: of the model.
      q: of the draft; above 0 for each guess.
      guesses: tokens.
      replaced: whether each was drawn from all of q, or from what the ones before had left.
    """
    chances = []
    for guess in guesses:
        chances.append(float(p[guess] / q[guess]) if p[guess] < q[guess] else 1.0)
        p = left_over(p, q)
        if not replaced:
            q = without(q, guess)
    return Verdict(tuple(chances), p)


def judge_certain(p: Float[np.ndarray, N], guesses: Sequence[int]) -> Verdict:
    """Guesses for one place that are no draws, as the likeliest tokens; all different."""
    chances = []
    for guess in guesses:
        chances.append(float(p[guess]))
        p = without(p, guess)
    return Verdict(tuple(chances), p)


def without(p: Float[np.ndarray, N], token: int) -> Float[np.ndarray, N]:
    """What is left of a distribution without a token; itself if that is all of it."""
    left = p.copy()
    left[token] = 0
    return left / left.sum() if left.any() else p


def ends_of_chain(
    ps: Float[np.ndarray, "G+1 V"], qs: Float[np.ndarray, "G V"], guesses: Sequence[int]
) -> Iterator[tuple[float, int, Float[np.ndarray, N]]]:
    """What a pass over a chain of guesses may come to.

    Args:
      ps: of the model after 0, 1, .. G guesses.
      qs: of the draft, from which each guess was drawn.
      guesses: G of them.

    Yields:
      The probability that just the first n guesses stand, n, and the distribution of the token
      that follows them.
    """
    left = 1.0
    for place, guess in enumerate(guesses):
        verdict = judge_drawn(ps[place], qs[place], [guess])
        yield left * (1 - verdict.chances[0]), place, verdict.rest
        left *= verdict.chances[0]
    yield left, len(guesses), ps[len(guesses)]


def accept_chain(
    ps: Float[np.ndarray, "G+1 V"],
    qs: Float[np.ndarray, "G V"],
    guesses: Sequence[int],
    rng: np.random.Generator,
) -> list[int]:
    """The tokens of a pass: the guesses that stand, and one more. Arguments as `ends_of_chain`."""
    ends = list(ends_of_chain(ps, qs, guesses))
    stood, law = ends[rng.choice(len(ends), p=[chance for chance, _, _ in ends])][1:]
    return [*guesses[:stood], int(rng.choice(len(law), p=law))]


def stands(p: Float[np.ndarray, "*N V"], q: Float[np.ndarray, "*N V"]) -> Float[np.ndarray, "*N"]:
    """The probability that a guess drawn from q stands by rule 1: 1 - TV(p, q)."""
    return np.minimum(p, q).sum(-1)


def same_draw(
    p: Float[np.ndarray, "*N V"], q: Float[np.ndarray, "*N V"]
) -> Float[np.ndarray, "*N"]:
    """The probability that p and q draw the same token from the same Gumbel noise.

    The sum over x of 1 / sum_y max(p_y / p_x, q_y / q_x) (Daliri et al. 2024, arXiv 2408.07978).

    Args:
      p: all above 0.
      q: all above 0.
    """
    ratios = np.maximum(p[..., None, :] / p[..., :, None], q[..., None, :] / q[..., :, None])
    return (1 / ratios.sum(-1)).sum(-1)


def tokens_a_pass(chance: float, guesses: int) -> float:
    """Of a chain whose guesses stand with one probability each: (1 - a^(g + 1)) / (1 - a)."""
    if chance == 1:
        return guesses + 1.0
    return (1 - chance ** (guesses + 1)) / (1 - chance)
