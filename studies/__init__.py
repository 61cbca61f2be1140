"""The paper's experiments as commands: ``runner`` is shared, each study adds its runs, tables and figures to it."""
