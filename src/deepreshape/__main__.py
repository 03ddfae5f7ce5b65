"""``python -m deepreshape`` is the command line."""

from deepreshape.cli import main

if __name__ == "__main__":
    main()
