"""What APEX (arXiv 2411.17651) claims and its released engine prints, beside ours.

Its rules for plans and its loop are written anew (`plans`, `loop`), with what its released code
gets wrong put right: decoding reads its context, and no iteration is left out.
"""

from __future__ import annotations

from experiments.papers.apex import beside, loop, released
from experiments.papers.apex.plans import SMALL, counted, llama_70b
from experiments.papers.apex.released import GAP, SAME, SHARED
from experiments.study import (
    Absent,
    Arm,
    Claim,
    Measure,
    Published,
    Study,
    as_printed,
    closed,
)

ARMS: dict[str, Arm] = {
    "llama": closed("Llama-3-70B on 2 H100", lambda: counted(llama_70b())),
    "small": closed("a model of four blocks on 2 H100", lambda: counted(SMALL)),
    "random": Arm(
        "60 requests, room for some", numbers=lambda s, seed: loop.conserved(0), exact=True
    ),
    "equal": closed("16 equal requests at once", loop.equal),
    "context": closed("decoding at 20,000 and at 16 tokens", loop.context),
    "tables": closed(
        "the engine's tables, 40 requests one after another",
        lambda: {**released.beside(SAME, GAP), **released.parts(GAP)},
    ),
    "tables-once": closed(
        "the same 40 at once", lambda: {**released.beside(SAME, 0.0), **released.parts(0.0)}
    ),
    "tables-shared": closed(
        "four heads share keys and values", lambda: released.beside(SHARED, GAP)
    ),
    "tables-room": closed(
        "40 at once, room for 2,000 tokens", lambda: released.beside(SAME, 0.0, 2000)
    ),
    "heads": closed(
        "shared heads, projections of those that there are",
        lambda: released.mended(SHARED, GAP, thrice=False),
    ),
    "contexts": closed(
        "40 at once, contexts read", lambda: released.mended(SAME, 0.0, alone=False)
    ),
    "server-once": closed("our scheduler, 60 at once, rows for all", beside.at_once),
    "server-arriving": Arm(
        "our scheduler, 60 one after another",
        numbers=lambda s, seed: beside.arriving(0),
        exact=True,
    ),
    "server-rows": Arm(
        "our scheduler, 60 at once, 8 rows", numbers=lambda s, seed: beside.few_rows(0), exact=True
    ),
    "server-budget": closed("our scheduler, 256 tokens of prompts a step", beside.bounded),
}
EXAMPLE = "the shipped example"


def _printed(text: str, arm: str, measure: str, figure: str, source: str = EXAMPLE) -> Claim:
    return Claim(text, "printed", (arm,), measure, source=source, figures=(figure,))


CODE = "the released code, run by a reader"
TABLES = "the released code (8769096) on synthetic tables"
PRINTED = {
    "requests": ("Requests an iteration", "8.7", "20.6"),
    "tokens": ("Tokens an iteration", "41.9", "99.7"),
    "first": ("First token, without waiting", "322.618", "3663.369"),
    "later": ("Time of each further token", "251.838", "223.053"),
    "later_50": ("Further tokens of a request, median", "244.244", "216.327"),
    "later_95": ("Further tokens of a request, 95th percentile", "256.836", "218.739"),
    "whole_50": ("A whole request, median", "8.179", "10.478"),
    "whole_95": ("A whole request, 95th percentile", "15.226", "16.799"),
    "mixer": ("Attention, all iterations", "19.24", "8.60"),
    "ffn": ("Feed-forward, all iterations", "17.99", "8.85"),
    "short": ("In all, without the last iteration", "37.01", "17.23"),
}
"""What it prints of requests that come one after another, and of the same at once."""
CLAIMS = (
    _printed("Three plans fit on two H100", "llama", "plans", "3", CODE),
    _printed("Of a small model there are five", "small", "plans", "5", CODE),
    _printed("Tensor: 63.8 GiB of parameters a device", "llama", "tensor", "63.8"),
    _printed("Attention by data, feed-forward by tensor: 75.0 GiB", "llama", "data", "75.0"),
    _printed("Two stages: 63.8 GiB", "llama", "stages", "63.8"),
    Claim("No token is lost", "near", ("random",), "missing", source="conservation"),
    Claim(
        "Each request ends, after it arrives", "near", ("random",), "endless", source="conservation"
    ),
    Claim("The cache is never above its room", "near", ("random",), "above", source="conservation"),
    Claim(
        "Equal requests take one prompt and writes - 1 iterations",
        "near",
        ("equal",),
        "off",
        0.0,
        1e-9,
        "closed form",
    ),
    Claim(
        "Decoding reads its context: a long one takes longer",
        "at_least",
        ("context",),
        "context",
        1.5,
        source="ours; the released code takes length 1",
    ),
    *(
        Claim(
            text,
            "printed",
            ("tables", "tables-once"),
            measure,
            source=TABLES,
            figures=tuple(figures),
        )
        for measure, (text, *figures) in PRINTED.items()
    ),
    Claim(
        "It leaves out the last iteration: with it, as its own parts add up",
        "printed",
        ("tables", "tables-once"),
        "all",
        source="the sum of its parts",
        figures=("37.23", "17.45"),
    ),
    _printed(
        "Shared heads: first token as it prices them", "tables-shared", "first", "676.828", TABLES
    ),
    _printed("Shared heads: further tokens", "tables-shared", "later", "513.511", TABLES),
    Claim(
        "Priced with the heads that there are, less",
        "at_most",
        ("heads",),
        "over",
        0.999,
        source="ours; it projects three times the heads of queries",
    ),
    Claim(
        "With contexts read, more",
        "at_least",
        ("contexts",),
        "over",
        1.01,
        source="ours; it looks at one token",
    ),
    Claim(
        "Room for some: it prints 30.35 s; with what gave way read again, more",
        "at_least",
        ("tables-room",),
        "short",
        30.36,
        source="ours; it resumes for nothing",
    ),
    Claim(
        "Our scheduler has the same steps, where the rules are the same",
        "near",
        ("server-once",),
        "steps",
        source="ours",
    ),
    Claim(
        "and the same ends",
        "near",
        ("server-once",),
        "apart",
        0.0,
        1e-9,
        source="ours",
    ),
    Claim(
        "Requests that come later are begun in the same order",
        "near",
        ("server-arriving", "server-rows"),
        "order",
        source="ours",
    ),
    Claim(
        "each at most two steps later: a step begins before the last one is seen",
        "at_most",
        ("server-arriving",),
        "apart",
        2.0,
        source="ours",
    ),
    Claim(
        "With 8 rows, a step later for each that had the row before, 8 at most, and what it takes "
        "to read other prompts together",
        "at_most",
        ("server-rows",),
        "apart",
        8.05,
        source="ours",
    ),
)

STUDY = Study(
    name="apex",
    title="Plans for serving",
    source="arXiv 2411.17651",
    page="machines.md",
    arms=ARMS,
    measures={
        "plans": Measure("plans", form=".0f"),
        "tensor": Measure("tensor", "lower", "GiB", ".1f"),
        "data": Measure("attention by data", "lower", "GiB", ".1f"),
        "stages": Measure("two stages", "lower", "GiB", ".1f"),
        "missing": Measure("tokens missing", "lower", form=".0f"),
        "endless": Measure("requests without an end", "lower", form=".0f"),
        "above": Measure("tokens above the room", "lower", form=".0f"),
        "off": Measure("off the closed form", "lower", "%", ".1e"),
        "context": Measure("long over short context", "lower", form=".2f"),
        "requests": Measure("requests an iteration", form=".1f"),
        "tokens": Measure("tokens an iteration", form=".1f"),
        "first": Measure("first token", "lower", "ms", ".3f"),
        "waited": Measure("first token, waiting too", "lower", "ms", ".3f"),
        "later": Measure("further tokens", "lower", "ms", ".3f"),
        "later_50": Measure("of a request, median", "lower", "ms", ".3f"),
        "later_95": Measure("of a request, 95 %", "lower", "ms", ".3f"),
        "whole_50": Measure("whole request, median", "lower", "s", ".3f"),
        "whole_95": Measure("whole request, 95 %", "lower", "s", ".3f"),
        "mixer": Measure("attention", "lower", "s", ".2f"),
        "ffn": Measure("feed-forward", "lower", "s", ".2f"),
        "short": Measure("in all, less the last", "lower", "s", ".2f"),
        "all": Measure("in all", "lower", "s", ".2f"),
        "over": Measure("over its rule", "lower", form=".4f"),
        "steps": Measure("steps more than the loop", form=".0f"),
        "order": Measure("out of order", "lower", form=".0f"),
        "apart": Measure("ends apart, at most", "lower", "steps", ".2g"),
        "late": Measure("ends later, mean", "lower", "steps", ".2g"),
    },
    published=(*as_printed(CLAIMS), Published("tables-room", "short", 30.35, TABLES)),
    claims=CLAIMS,
    notes=(
        "simulated requests run on a synthetic device whose time is linear in tokens",
        "the released engine prints first tokens without the time that a request waits; it ends "
        "with an error where a cache is too small for one prompt (6 values where 7 are expected) "
        "and where more devices split attention than there are heads of keys (a division by zero)",
        "with 256 tokens of prompts between two steps our scheduler reads blocks of all prompts in "
        "turn, where the loop reads whole prompts: first tokens come in another order",
        "the released loop (commit d96aa5f), given such times that know no context, has the same "
        "tokens in each of 26,584 iterations and the same ends, in 200 drawn traces with room for "
        "all; compared once, no part of the tests",
    ),
    absent=(
        Absent(
            "Up to 3.37 times faster than heuristic plans; TTFT, TPOT and tokens/s of H100",
            "from tables of measured operators, which are no part of small clones",
        ),
    ),
)
