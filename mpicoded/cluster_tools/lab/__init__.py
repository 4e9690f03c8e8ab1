"""A Pi cluster on one machine: network namespaces, token buckets and CPU quotas; its faults."""
