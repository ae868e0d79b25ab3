"""Motion modules as other programs keep them, to and from our motion files."""
