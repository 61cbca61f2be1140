"""The domains of ``--source laboratory``: what each archive is, under which licence, and how it becomes documents."""
