"""Private inference between a client, who owns the input, and a server, who owns the weights."""
