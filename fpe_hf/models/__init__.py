"""Small classifiers of the paper's kind, as transformers models: an MLP, and a CNN with one.

After `import fpe_hf` they load by transformers' auto classes, like any other model.
"""
