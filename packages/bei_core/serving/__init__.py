"""The life of an accepted request: queue, engine thread, and the service around them."""
