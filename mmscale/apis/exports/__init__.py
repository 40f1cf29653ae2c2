"""Exports networks: weights, configs, programs, a model card."""
