"""Noise, guidance, windows and measures around a network that samples: pure functions of tensors."""
