"""Searches over training runs: spaces, gates, halvings, and the lines of what was found."""
