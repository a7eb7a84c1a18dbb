"""`/v1/adapters`: publish, list, look at, move, download, keep in memory and delete adapters."""
