"""A small Llama-architecture language model that learns to complete Python code.

Controller side: `corpus.prepare` builds the data, `corpus.upload` stores it under its hash. On the nodes every rank
runs ``mlops_pipelines.programs.code_lm.train``. `complete.complete` uses an exported model.
"""
