"""Places beyond this machine that hold what follows from a set's rows; none of them is needed to use negindex."""
