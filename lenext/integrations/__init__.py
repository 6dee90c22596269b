"""Other projects' tools on runs of ours: each is a module of its own, and an extra to install."""
