"""The integer program: how it is made, what it means, and its bytes."""
