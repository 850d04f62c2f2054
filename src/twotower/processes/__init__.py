"""Several processes that train one model: who they are, and what passes between them."""
