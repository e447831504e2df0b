"""What the library costs and how well it keeps a limit, measured on the embedded emulator."""
