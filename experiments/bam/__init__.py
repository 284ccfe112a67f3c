"""Trained dense models made into one mixture of experts, and trained on."""
