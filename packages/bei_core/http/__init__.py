"""The HTTP server: routes, bodies, errors."""
