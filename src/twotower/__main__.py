"""``python -m twotower``: the command."""

from twotower.cli import main

if __name__ == "__main__":
    main()
