"""Experiments, one file each; `get_config()` builds the record of a run."""
