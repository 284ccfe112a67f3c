"""Mathematics without parameters, one operator a file.

The functions here can be used in any program of JAX, without the rest of the package. Each takes
plain arrays, where documents begin (`starts`, bool [B, T], or None), a state (or None), and the
mesh axis that splits the tokens (or None), and returns its output and the state after the last
token.
"""

from gam_jax.ops.cached_attention import KeyValues, attend
from gam_jax.ops.conv import causal_conv
from gam_jax.ops.scan import memory_scan
from gam_jax.ops.selective import selective_scan

__all__ = ["KeyValues", "attend", "causal_conv", "memory_scan", "selective_scan"]
