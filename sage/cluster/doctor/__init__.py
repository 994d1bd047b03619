"""`sage doctor`: checks of the nodes and of the network between them, before a run needs them."""
