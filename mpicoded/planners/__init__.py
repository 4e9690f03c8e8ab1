"""Planners: how a network is shared out. One file each, one line here; all give one kind of Plan."""
