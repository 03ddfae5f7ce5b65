"""What ``quantize.py`` does one after another: a plan of the steps, formats, the program, bounds on its error."""
