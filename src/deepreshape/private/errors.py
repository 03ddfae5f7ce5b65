"""What can go wrong in a private run."""


class PrivateError(Exception):
    """A private run cannot go on: the peer, a certificate or the offline store is not as it must be."""
