"""The losses that a training step minimises."""
