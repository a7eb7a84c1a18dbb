"""One file for each part of an upload that can be turned against the server."""
