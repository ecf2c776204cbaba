"""The machine: devices, processes, the disk, checkpoints, signals, and what a run was made with."""
