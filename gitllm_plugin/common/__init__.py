"""What models, data, tasks and runners share; imports none of them."""
