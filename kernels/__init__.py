"""The two hot operations: attention over packed rows, and log-probabilities of tokens."""
