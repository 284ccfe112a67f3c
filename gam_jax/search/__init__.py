"""Searches over the fields of any configuration; they know neither meshes nor models."""

from gam_jax.search.budgets import Budget
from gam_jax.search.exact import Exact, best_sum
from gam_jax.search.gates import Gate, Verdict, through
from gam_jax.search.greedy import by_ratio, drawn_within, layer_by_layer
from gam_jax.search.limits import Limit, penalty
from gam_jax.search.optuna_samplers import Optuna
from gam_jax.search.run import STRATEGIES, Searched, search, strategy_of
from gam_jax.search.space import Choice, Point, Space
from gam_jax.search.strategies import All, Anneal, Evolve, Random, Searcher, Strategy, Told
from gam_jax.search.tables import Settings, TableSearch, learn

__all__ = [
    "STRATEGIES",
    "All",
    "Anneal",
    "Budget",
    "Choice",
    "Evolve",
    "Exact",
    "Gate",
    "Limit",
    "Optuna",
    "Point",
    "Random",
    "Searched",
    "Searcher",
    "Settings",
    "Space",
    "Strategy",
    "TableSearch",
    "Told",
    "Verdict",
    "best_sum",
    "by_ratio",
    "drawn_within",
    "layer_by_layer",
    "learn",
    "penalty",
    "search",
    "strategy_of",
    "through",
]
