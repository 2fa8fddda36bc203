"""Deploying to Baseten with Truss."""
