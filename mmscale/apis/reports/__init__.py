"""Reads what a run leaves in its work dir, and draws it."""
