"""A server for many clients, and both parties on one machine."""
