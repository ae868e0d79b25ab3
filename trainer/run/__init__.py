"""What the commands that train share."""
