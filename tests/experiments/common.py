"""What tests of experiments and benchmarks share."""

KEYS = {"config", "seeds", "tokens", "steps", "git", "fingerprint", "versions"}
MISSING = "torch not installed: so says the test"
