"""Stock kernels as guests."""

# The status of pytest in a lab where no guest's timer works (docs/lab.md): another may be better.
UNUSABLE = 75
