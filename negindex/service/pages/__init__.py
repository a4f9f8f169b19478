"""Pages for the people who answer notices: rendered here, a little script of their own, nothing from elsewhere."""
