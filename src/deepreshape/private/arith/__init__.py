"""Numbers on shares: no party, no wire."""
