"""M3IT as data: rows, files, images, prompts and groups. Needs neither LAVIS nor torch."""
