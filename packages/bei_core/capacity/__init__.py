"""The capacity model behind `bei capacity`: from a measured service curve to replicas, latency and cost."""
