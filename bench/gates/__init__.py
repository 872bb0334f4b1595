"""What is measured exactly, with no clock, and the committed table that it has to agree with."""
