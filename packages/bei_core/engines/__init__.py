"""Engines: the contract, the registry, the cache of built ones, and one folder for each kind."""
