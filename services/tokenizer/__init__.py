"""Text ⇄ token ids, and the record from which a running request can be sent again.

Owns chat templates, detokenization, the stop-string buffer and, per live request, prompt ids,
emitted ids and parameters. Start with `requests.py` (all decisions), then `service.py` (the shell).
"""
