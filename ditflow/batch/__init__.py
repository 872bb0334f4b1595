"""Many runs at once: reads job files, and gives their jobs to workers on this machine or a cluster."""
