"""Start, watch and imitate clusters: nothing of serving imports this wing."""
