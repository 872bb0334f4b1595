"""The command line: words to settings, and progress to the screen."""
