"""The gateway: an OpenAI-compatible API in front of a network; its answers carry receipts."""
