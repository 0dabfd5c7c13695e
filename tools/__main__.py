"""`python -m lmdali.tools` is the command `lmdali`."""

from lmdali.tools.cli import main

if __name__ == "__main__":
    main()
