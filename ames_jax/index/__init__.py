"""Search in collections of pictures: an index on disk, its first stage, and re-ranking."""
