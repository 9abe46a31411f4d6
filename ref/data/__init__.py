"""Data: readers of the forms in which it comes, and the Dataset that it becomes."""
