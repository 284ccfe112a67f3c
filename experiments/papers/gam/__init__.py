"""The tables of the Gated Associative Memory paper (arXiv 2509.00605)."""
