"""The HTTP service: a thin layer over ``Retriever``."""
