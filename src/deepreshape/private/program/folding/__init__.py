"""Layers of a traced network folded into one another, and scales moved between them, before they become integers."""
