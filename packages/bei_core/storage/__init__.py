"""Files on a disk, a network volume or in an object store: the cache, its locks, transfers, and translated errors."""
