"""A job that ends without a word, and without having done anything."""

import sys

if __name__ == "__main__":
    sys.exit(1)
