"""Fixtures and demo weights that ship with negindex; each folder's README.md gives its provenance."""
