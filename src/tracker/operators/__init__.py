"""One small rule an operator: which labels its output carries, and which labels it ties together.

A rule is called after its operator ran, as `rule(flow, out, *args, **kwargs)` with the operator's own arguments. Write
one for an operator of your own with `@operator_rule(torch.ops.mylib.op)`, or name its module under the entry-point
group `tracker.operators`.
"""

from tracker.operators.registry import Rule, operator_rule, rule_for

__all__ = ["Rule", "operator_rule", "rule_for"]
