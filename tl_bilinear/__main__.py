"""`python -m tl_bilinear`: the command line, where torchrun starts modules."""

from tl_bilinear.cli import app

if __name__ == "__main__":
    app()
