"""What the library costs and how well it keeps a limit, side by side with what users would pick instead."""
