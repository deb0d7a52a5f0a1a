"""The self-supervised tasks: views, masks and objectives, one file each."""
