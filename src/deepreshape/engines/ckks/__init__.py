"""A network of linear layers and squares under leveled CKKS: one ciphertext up, one down, no interaction.

A client makes keys once and uploads the evaluation keys; then each inference is one ciphertext in each direction. There
is no bootstrapping, so depth is bounded: about ten convolutions with a square behind each. ``parameters`` chooses the
modulus, ``packing`` lays maps out in slots, ``circuit`` makes steps of a network's layers, of which a client has
``public``, ``scheme`` has the homomorphic library's keys and operations, ``evaluate`` is what the server does. ``wire``
makes bytes of known length of keys and ciphertexts, ``exchange`` says who sends what, ``keys`` keeps keys in files;
``local`` runs both parties on one machine and ``remote`` over TLS. ``price`` says before what it will take.

Model: semi-honest. The client's input is protected by ring-LWE at 128 bits. **The server's weights have no statistical
protection**: the noise of an answer depends on them, and flooding it by 2^40 would leave nothing of the answer at these
parameters. A client must not hand on raw decryptions (Li and Micciancio, EUROCRYPT 2021).
"""
