"""The API of TGI and LoRAX: their routes, fields, replies and error bodies over the same service as all others."""
