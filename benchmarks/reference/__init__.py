"""`make reference`: every study of results/reference made anew from results/reference/plan.yaml, in
pieces of the minutes given.
"""
