"""Ray: workers on its nodes, and what is wrong with a node."""
