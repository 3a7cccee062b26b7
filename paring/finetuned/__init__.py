"""Full fine-tunes as deltas of their base: packed, restored, looked into."""
