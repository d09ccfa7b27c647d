"""Many runs under one command: a grid of settings and seeds, worked off by lanes, Ray or Slurm, and compared."""
