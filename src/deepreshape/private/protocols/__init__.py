"""Two-party steps on shares; each declares what it sends."""
