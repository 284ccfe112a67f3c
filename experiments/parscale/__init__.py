"""Parallel scaling streams (ParScale, arXiv 2505.10475): what they cost and what they bring."""
