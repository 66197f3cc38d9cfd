"""The harness: data -> latents -> weights -> samples -> scores -> records -> report. Start reading
at `run.py`.
"""
