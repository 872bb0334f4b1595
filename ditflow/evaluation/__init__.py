"""How well a result follows its clip and its prompt, in numbers."""
