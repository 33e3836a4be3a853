"""Several runs as one experiment: started one after another, compared in a table and two figures."""
