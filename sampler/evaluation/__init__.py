"""Does it keep images away, at what price, beside what others do: the worlds, the methods, the measures."""
