"""Which neurons go, and is the model still right?"""
