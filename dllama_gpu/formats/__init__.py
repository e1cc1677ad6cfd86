"""Raw access to files: memory mapping and the GGUF container. Knows neither models nor tokenizers."""
