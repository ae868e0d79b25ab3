"""The way of a clip from disk to a batch."""
