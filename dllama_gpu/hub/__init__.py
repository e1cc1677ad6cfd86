"""Models from Hugging Face's hub, or a mirror of it: names, files, downloads that resume and are verified."""
