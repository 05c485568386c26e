"""Training loops as people write them, each around the same network, and our own; each runs in a process of its own."""
