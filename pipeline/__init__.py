"""The data path at run time and the format it reads."""
