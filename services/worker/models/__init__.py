"""Model families: each turns a config.json into a program of ops and says where its weights are.

Start with `llama`; `registry` maps architectures to families.
"""
