"""The integer program on other people's engines, to compare with: same network, same input, their arithmetic."""
