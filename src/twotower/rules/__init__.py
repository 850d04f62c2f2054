"""Rules: what stands in an answer beside what the model says."""
