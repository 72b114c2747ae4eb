"""The suite for a real GPU: `cli` (commands), `plans` (what is run, in which order), `runner` (budget, results), `packing` (the archive)."""
