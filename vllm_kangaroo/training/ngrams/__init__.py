"""Tables of what a model most often says after a few tokens."""
