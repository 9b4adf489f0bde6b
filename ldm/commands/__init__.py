"""The commands, one module each: `main()` reads the command line and calls the stage's function.

In: arguments of the command line. Out: what the stage writes, and a line with the next command.
"""
