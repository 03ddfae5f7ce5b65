"""What single units of a network do: which never fire, and what they respond to."""
