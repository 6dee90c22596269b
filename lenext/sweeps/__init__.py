"""The engine that experiments run on: runs, what is done of them, what is made of it."""
