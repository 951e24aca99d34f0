"""Callbacks for training frameworks, thin over `pruner.GradualPruning`: `transformers` and `lightning`."""
