"""Speed, measured: ours and a peer in one process, with their answers compared first."""
