"""Two-tower retrieval: from a table of interactions to a trained, evaluated, served model."""
