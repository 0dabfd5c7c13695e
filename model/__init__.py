"""The network and its training; receives loaders, never builds them."""
