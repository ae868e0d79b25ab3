"""What is trained: torch modules and the file that holds them. Knows neither host."""
