"""Engines: the contract, the store of built ones, and one folder for each kind."""
