"""`python -m leokit` is `leokit`."""

from leokit.cli import main

if __name__ == "__main__":
    main()
