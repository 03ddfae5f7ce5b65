"""The integer program on SPU."""
