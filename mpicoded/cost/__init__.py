"""Cost: what a plan on a cluster takes, before it runs."""
