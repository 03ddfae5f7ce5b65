"""Settings shared by all tests."""

import signal

import torch
from hypothesis import settings

# examples that build and trace networks take long, but the same ones every time
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of tests inherit it, and are to take Ctrl-C
