"""Is the last step of a solution right? A critique first, then Yes or No.

For the consensus filter of process labels (Qwen2.5-Math-PRM, arXiv 2501.07301, section 3.1), whose
judge is asked for the first wrong step; here it is asked about each step in turn. The words are
ours.
"""

from posttrain_jax.verifiers.judging import reading

TEMPLATE = """\
Problem:
{{ prompt }}
{% if reference is defined %}
Reference answer:
{{ reference }}
{% endif %}
Solution up to here:
{{ response }}

Its last step:
{{ step }}

Is the last step right, given the steps before it? Check it. Then end with one line:
Verdict: Yes
or
Verdict: No"""
SCALE = (0.0, 1.0)
COMBINE = "mean"
read = reading.yes_no
