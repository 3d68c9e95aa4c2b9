"""What a run leaves behind: its folder, checkpoints, rows, images and where they came from."""
