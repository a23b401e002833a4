"""The notebook side: the magic, the presenter and the views. It exports nothing."""
