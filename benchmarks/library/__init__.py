"""Peers that are libraries and no servers: PEFT and transformers, each in a process of its own."""
