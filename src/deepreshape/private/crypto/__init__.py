"""Primitives that know no layer."""
