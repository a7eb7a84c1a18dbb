"""Uploads that mean harm, and uploads that were damaged on their way."""
