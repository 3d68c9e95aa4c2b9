"""The verbs of the command line, a module each; `normlab.cli` dispatches to them."""
