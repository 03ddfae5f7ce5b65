"""What a client and a server do with a program."""
