"""From a bare machine to a running model: the environment, the catalogue of models, verified downloads.

Everything here uses the standard library alone, because it runs before there is an environment; so do
`dllama_gpu.errors` and `dllama_gpu.hub.catalogue`, which it imports.
"""
