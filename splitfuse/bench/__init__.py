"""`splitfuse bench`: loads on servers that speak OpenAI's protocol, and what comes back.

What a load is and what its numbers mean is in `common/workload`; here are the client, the servers
that are started for a comparison, result files and the verbs. Start at `drive.py` (a load on a
server) or at `sweep.py` (policies compared).
"""
