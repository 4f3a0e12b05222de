"""Decisions over a ladder: what to draft, and when to stop."""
