"""How sample grids are laid out."""

SIDE = 256  # of a plot of points
PADDING = 2  # black pixels around every image of a grid
COLUMNS = 8
