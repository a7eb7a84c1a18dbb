"""Waybill: a multi-tenant inference server for prompt-learning adapters."""
