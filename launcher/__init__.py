"""From a bare machine to a running model: the environment, the catalogue of models, verified downloads.

Everything here uses the standard library alone (and `dllama_gpu.errors`, which does too), because it runs before
there is an environment.
"""
