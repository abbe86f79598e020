"""A distributed file system after the Google File System paper, on Trio."""

__version__ = "0.1.0"
