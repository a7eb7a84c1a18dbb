"""The asyncio use cases: generation, adapters, tenants. No FastAPI, no torch."""
