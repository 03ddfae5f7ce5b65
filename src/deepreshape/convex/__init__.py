"""Gated-ReLU networks fitted as convex programs, for tables: optimal with a certificate, and private without a ReLU."""
