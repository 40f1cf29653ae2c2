"""Scales networks by closed-form rules, and searched families on."""
