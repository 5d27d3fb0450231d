"""Applications: one module each. A public module in this folder is an application; nothing else registers it."""
