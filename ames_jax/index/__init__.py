"""Storing and searching galleries of packed descriptors."""
