"""One file is one peer: how it writes the samples and how its users read them; each in its own environment."""
