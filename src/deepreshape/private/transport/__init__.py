"""Bytes between two processes; it knows no network."""
