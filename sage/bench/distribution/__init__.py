"""The distributions of recorded gradients: fits by layer and over training (`sage bench distribution`)."""
