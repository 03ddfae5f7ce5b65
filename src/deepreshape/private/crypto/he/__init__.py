"""Homomorphic encryption."""
