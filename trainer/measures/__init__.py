"""What `evaluate` measures of sets of clips, and what it says of them."""
