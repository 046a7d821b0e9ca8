"""Model families: each turns a config.json into a program of ops and says where its weights are.

Start with `llama`; `builder` collects what a family declares, `registry` maps architectures to
families.
"""
