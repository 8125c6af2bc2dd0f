"""A chain of commands: its steps, the words of each, running them."""
