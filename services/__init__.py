"""The four kinds of process, one package each; run one with `python -m services.<name>`.

They never import each other: what they say to each other is in `common.messages`.
"""
