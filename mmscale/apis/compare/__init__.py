"""Puts ways to come to a network side by side."""
