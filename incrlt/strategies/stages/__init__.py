"""Second stages that any strategy can take: what else trains in an experience, as data."""
