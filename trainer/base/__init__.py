"""The image model."""
