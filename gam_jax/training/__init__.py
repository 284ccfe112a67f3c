"""A training run of any model on any data: steps, validation, checkpoints, resume."""
