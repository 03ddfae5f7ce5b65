"""What can go wrong in a private run::

    PrivateError                       a private run cannot go on
      LocalError                       something of ours is not as it must be; the peer has no part in it
        CertificateError
        StoreError
          SpentError
      ProtocolError                    the session with the peer is over, and its offline batch spent
        TimeLimitError
        ConnectionLostError
        PeerAbortedError
        LostBatchError
        RefusedError                   one party does not accept the other, or what it asks for
          ConfigurationMismatchError
          CapError

``ProtocolError`` itself says that the peer sent what the protocol does not allow.
"""

from __future__ import annotations

from collections.abc import Mapping


class PrivateError(Exception):
    """A private run cannot go on: the peer, a certificate or the offline store is not as it must be."""


class LocalError(PrivateError):
    """A file of this party's is not as it must be."""


class CertificateError(LocalError):
    """A key or certificate is missing, already there, readable by others, expired, or for another purpose."""


class StoreError(LocalError):
    """The store cannot give or take this batch; the message says why."""


class SpentError(StoreError):
    """The batch was claimed before, here or by another process, and can never be used again."""


class ProtocolError(PrivateError):
    """The peer broke the protocol; the session is over and its offline batch is spent."""


class TimeLimitError(ProtocolError):
    """The peer was silent, did not read, or the session took longer than a time-out allows."""


class ConnectionLostError(ProtocolError):
    """The connection could not be made, was refused, was cut, or carried bytes that TLS did not accept."""


class PeerAbortedError(ProtocolError):
    """The peer ended the session and says no more than that."""


class LostBatchError(ProtocolError):
    """One half of an offline batch is missing or damaged, so the other was destroyed; the next batch may serve."""


class RefusedError(ProtocolError):
    """TLS version, certificate, role or pin of the other side was not accepted, by us or by them."""


class ConfigurationMismatchError(RefusedError):
    """The two parties were not started for the same computation.

    Attributes:
        differing: labels of the public fields that differ.
    """

    def __init__(self, differences: Mapping[str, str]) -> None:
        super().__init__(f"configuration mismatch: {'; '.join(differences.values())}")
        self.differing = frozenset(differences)


class CapError(RefusedError):
    """A client has reached a cap; it is told no more than that the session is over."""
