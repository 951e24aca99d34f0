"""`make bench-quality`: what is left of a model's quality, by us and by the field, on the same data in the same run."""
