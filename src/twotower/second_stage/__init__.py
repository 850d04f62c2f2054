"""The second stage: ranks what the towers retrieved, by what a dot product cannot say."""
