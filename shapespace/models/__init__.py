"""Model families: each file has the config, the class and the builder of one family."""
