"""What is trained: systems composed of parts, and the plan of a run."""
