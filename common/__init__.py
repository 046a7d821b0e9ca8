"""What every service shares: the protocol, the transport, configuration, logs and metrics.

Depends on nothing else of ours and on no tensor library. Start with `messages.py`.
"""
