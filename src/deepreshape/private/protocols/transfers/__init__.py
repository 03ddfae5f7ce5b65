"""ReLUs by oblivious transfers alone."""
