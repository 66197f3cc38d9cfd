"""Sets of pictures before the benchmark sees them: drawn, listed in folders, from the hub, from other tools, spoiled on purpose."""
