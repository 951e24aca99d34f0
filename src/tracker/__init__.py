"""Which neurons exist in a model, and what do they do?"""
