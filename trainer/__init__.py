"""The trainer: commands that make motion files, and small base models and clips to try them on."""
