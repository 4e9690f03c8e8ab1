"""Networks: how one is read, cut into blocks and run in pieces."""
