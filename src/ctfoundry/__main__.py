"""``python -m ctfoundry``."""

from ctfoundry.cli import main

if __name__ == "__main__":
    main()
