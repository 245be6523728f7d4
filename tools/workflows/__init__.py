"""The sources of the workflows in files/workflows: a function for each, which adds nodes to groups."""
