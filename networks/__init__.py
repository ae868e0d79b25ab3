"""The networks that are trained: torch modules and the file that holds them. They know neither host."""
