"""Folders of results that continue after a kill."""
