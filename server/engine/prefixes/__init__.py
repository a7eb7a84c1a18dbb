"""From an adapter's file to what the engine holds of it: an embedding table, or a prefix KV."""
