"""Looks at the machine before ComfyUI spends its minutes on it: `comfyrun check`, and at every start.

Asking the machine (system.py, driver.py, child/) is apart from deciding what the answers mean (one file a check).
"""
