"""Storage: the cache, its locks and leases, object stores, downloads, and the translation of their errors."""
