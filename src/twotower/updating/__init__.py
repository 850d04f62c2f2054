"""Nightly updates: a bundle learns the events of a day, and keeps its rows and its vectors."""
