"""`python -m neuronscope` is the command `neuronscope`."""

from neuronscope.cli import app

if __name__ == "__main__":
    app(prog_name="neuronscope")
