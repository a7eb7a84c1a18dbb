"""The command line's side of the API: `waybill adapters …` against a running server."""
