"""Programs that preflight starts, each in a process of its own: whatever hangs or crashes there does no harm.

They import nothing of comfyrun, and print one line of JSON.
"""
