"""The server that clients talk to."""

from tests.clients.serving import served as served
