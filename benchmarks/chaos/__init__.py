"""Attacks on a server of its own, on loopback; writes what each did to benchmarks/results/chaos.md."""
