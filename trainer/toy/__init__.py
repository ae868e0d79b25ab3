"""The small base to learn and test with."""
