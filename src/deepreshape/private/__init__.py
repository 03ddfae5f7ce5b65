"""Private inference between a client, who owns the input, and a server, who owns the weights."""


class PrivateError(Exception):
    """A private run cannot go on: the peer, a certificate or the offline store is not as it must be."""
