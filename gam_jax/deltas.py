"""Models that were tuned apart from one base, put together."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gam_jax.params import Params, path_name
from sharding.errors import UserError


def united(base: Params, *tuned: Params) -> Params:
    """The base with all that was changed in any of the others, bit for bit.

    Args:
      base: what all of them began with.
      *tuned: parameters of the same names and shapes.

    Raises:
      UserError: a parameter that two of them have changed; it is named.
    """

    def one(path: Any, start: Any, *others: Any) -> Any:
        changed = [x for x in others if not np.array_equal(np.asarray(x), np.asarray(start))]
        if len(changed) > 1:
            raise UserError(
                f"{path_name(path)} was changed by {len(changed)} of {len(others)} tuned models: "
                f"tune disjoint parameters, as optimizer.only names them"
            )
        return changed[0] if changed else start

    return jax.tree_util.tree_map_with_path(one, base, *tuned)
