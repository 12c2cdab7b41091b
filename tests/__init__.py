"""Tests: one file for each module; what they compare with stands in `peers.py`."""
