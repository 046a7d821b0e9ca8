"""The gateway: HTTP and SSE on one side, tokenizers on the other.

Owns open HTTP streams, deadlines, API keys and admission; never looks into a token id.
Start with `streams.py` (pure: who works on what), then `generate.py` (one HTTP request's life).
"""
