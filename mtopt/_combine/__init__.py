"""From the rows at the sites to one gradient each: the list of transforms at work."""
