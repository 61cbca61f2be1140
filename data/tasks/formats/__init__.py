"""How a row becomes the texts of an example: T5's formats, and this project's in their manner."""
