"""What happens around a network while it samples: pure functions of tensors."""
