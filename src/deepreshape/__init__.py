"""Redesign convolutional networks for private inference."""
