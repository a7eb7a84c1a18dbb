"""OpenAI's routes, with the fields that vLLM adds to them: what POST /v1/generate does, in other words."""
