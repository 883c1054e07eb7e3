"""How each recurrent cell runs over a batch of windows of one city, with its own parameters: a module a family."""
