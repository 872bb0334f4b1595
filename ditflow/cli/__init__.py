"""The command line: arguments to settings, and progress to the screen."""
